"""Lo que dice insula rm, en español."""

TEXTS = {
    "nothing_named": "nombra los modelos que quieres borrar, o usa --unused",
    "not_ours": "{name} es de {program}; bórralo allí",
    "removed": "{name} se ha borrado ({freed} libres)",
    "pruned": "se han borrado {files} ficheros sin uso ({freed} libres)",
    "damaged": "{name} se ha borrado; no se pudo leer lo que decía, así que pueden quedar ficheros suyos, que insula prune quita",
}
