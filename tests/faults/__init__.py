"""The shop under faults: workers and servers killed, frozen, starved, in the middle of 100,000 purchases."""
