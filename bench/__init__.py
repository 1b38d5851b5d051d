# SPDX-License-Identifier: Apache-2.0
"""Checks ops and their peers against float64, then times them side by side."""
