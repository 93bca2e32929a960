"""Runs in Isaac's own interpreter: imports numpy, the standard library, gymnasium and Isaac Lab, and nothing else.

The client puts the folder above this one on the path and imports the package by its last name, so that `envs` and
`rl_finetune`, whose dependencies Isaac's interpreter lacks, are never imported here. All imports inside are relative.
"""
