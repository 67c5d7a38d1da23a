/* The floor: the cost of loading an object without any check and without keeping any record. One module at a time. */
#ifndef FLOOR_H
#define FLOOR_H

/* Makes the arena, once. Returns -1 if a system call fails. */
int floor_open(void);

/* Loads the object, whose bytes must stay until floor_unload. Returns -1 if a write fails. */
int floor_load(const unsigned char *object);

/* Reads the file and loads it. */
int floor_load_file(const char *path);

/* Returns the symbol of this name, or NULL. */
void *floor_symbol(const char *name);

int floor_unload(void);

#endif
