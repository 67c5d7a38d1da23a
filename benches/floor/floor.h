/* The floor: what loading an object costs when nothing is checked and nothing is kept. One module at a time. */
#ifndef FLOOR_H
#define FLOOR_H

/* Makes the arena, once. -1 if the system does not let us. */
int floor_open(void);

/* Loads the object, whose bytes must stay until floor_unload. -1 if a write failed. */
int floor_load(const unsigned char *object);

/* Reads the file and loads it. */
int floor_load_file(const char *path);

/* The symbol of this name; NULL if there is none. */
void *floor_symbol(const char *name);

int floor_unload(void);

#endif
