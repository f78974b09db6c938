"""What `vm.create` goes through, as the contract has it; written down once, and not taken from the code."""

CREATE_STAGES = "validate reserve disks identity network vmm boot agent services ready".split()
