/*
 * Sites that are changed while threads run through them, by stores that no manual of Intel's allows: what a processor
 * makes of that. Nothing of this is part of the product.
 */
#ifndef STORES_H
#define STORES_H

#include <stddef.h>
#include <stdint.h>

/* How a site is changed. */
enum stores_how {
	/* By one store of eight bytes: the aligned ones in which it lies, or, where it crosses them, those it begins. */
	STORES_ONE,
	/* By a store for each of its bytes: what must go wrong, or nothing here would be seen. */
	STORES_BYTES,
};

/* What has been seen, in memory that outlives a child. */
struct stores_seen {
	uint64_t flips;   /* sites that were changed */
	uint64_t calls;   /* calls through them meanwhile */
	uint64_t neither; /* calls that did neither what the old nor what the new instruction does */
	uint64_t settled; /* calls that began after all cores were synchronised and ended before the next store */
	uint64_t stale;   /* of these, calls that did the old */
};

/* Zeros, which a child shares. NULL if there is no memory. */
struct stores_seen *stores_open(void);

/*
 * Flips 16 sites, 64 bytes apart and `offset` bytes behind that, for so many milliseconds, with a synchronisation of all
 * cores and about a microsecond of rest behind every 16; a thread for each other CPU calls them. -1 if the system does not let us. To be called in a
 * process of its own, once.
 */
int stores_run(int how, size_t offset, unsigned milliseconds, struct stores_seen *seen);

#endif
