"""Instruments: generated scenes, data sets, recall, statistics, load, records and the machine they ran on."""
