"""What all scripts share: command line, CPU threads, device, process group."""
