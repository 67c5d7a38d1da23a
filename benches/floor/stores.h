/*
 * Sites that are changed while threads run through them, by stores that Intel's manuals do not allow: tests what a
 * processor does then. This code is not part of the product.
 */
#ifndef STORES_H
#define STORES_H

#include <stddef.h>
#include <stdint.h>

/* How a site is changed. */
enum stores_how {
	/* By one store of eight bytes: the aligned bytes that hold the site or, if it crosses them, the bytes from it on. */
	STORES_ONE,
	/* By a store for each byte. This must fail, otherwise the test would not detect errors. */
	STORES_BYTES,
};

/* The observations, in memory that outlives a child. */
struct stores_seen {
	uint64_t flips;   /* changed sites */
	uint64_t calls;   /* calls through the sites meanwhile */
	uint64_t neither; /* calls with neither the old nor the new result */
	uint64_t settled; /* calls that began after all cores were synchronised and ended before the next store */
	uint64_t stale;   /* of these, calls with the old result */
};

/* Returns zeroed memory that a child shares, or NULL. */
struct stores_seen *stores_open(void);

/*
 * Flips 16 sites, 64 bytes apart and starting at `offset`, for `milliseconds`. After every 16 sites it synchronises all
 * cores and rests about a microsecond. A thread for each other CPU calls the sites. Returns -1 if a system call fails.
 * Must be called only once, in a process of its own.
 */
int stores_run(int how, size_t offset, unsigned milliseconds, struct stores_seen *seen);

#endif
