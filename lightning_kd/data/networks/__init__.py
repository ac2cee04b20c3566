"""Networks of the examples and of the published tables.

May import nothing of this package. Begin with ``digits.py``. YAML names the networks of CIFAR-100 by
``lightning_kd.data.cifar_models``. To add a network, write it here and name it there.
"""
