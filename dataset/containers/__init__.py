"""Files that hold many images: .rec, .tar and .bin."""
