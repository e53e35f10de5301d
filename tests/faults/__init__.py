"""The shop under faults: workers and servers are killed or frozen, disks are filled, amid 100,000 purchases."""
