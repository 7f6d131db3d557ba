"""The machine: its hardware, what it did meanwhile, fresh processes, and the store on its disk."""
