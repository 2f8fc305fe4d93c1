"""How many images per second each stage does on this machine, held against what the machine allows. See README.md."""
