"""What insula pull says, in English."""

TEXTS = {
    "connecting": "looking for {name}",
    "checking": "checking {name}",
    "unpacking": "unpacking {name}",
    "downloading": "downloading {name}",
    "ready": "{name} is ready ({size})",
    "licence": "its licence is {licence}",
}
