"""Vouchers for what customers buy: windows of purchases, what they earn, and a trial of the rules."""
