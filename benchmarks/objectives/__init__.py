"""Objectives compared over seeds: records of trainings, and the tables and pictures made of them."""
