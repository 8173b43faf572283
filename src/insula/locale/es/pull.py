"""Lo que dice insula pull, en español."""

TEXTS = {
    "connecting": "buscando {name}",
    "checking": "comprobando {name}",
    "unpacking": "desempaquetando {name}",
    "downloading": "descargando {name}",
    "ready": "{name} está listo ({size})",
    "licence": "su licencia es {licence}",
}
