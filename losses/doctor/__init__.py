"""The loss doctor behind `python -m losses`: examines losses and reports what is wrong with them."""
