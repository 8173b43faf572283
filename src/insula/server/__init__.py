"""The server: other programs' interfaces over the models of this machine.

Start with app.py; routes.py says what there is, and who may ask for it.
"""
