"""Promotions: windows of purchases, vouchers, and trials of rules."""
