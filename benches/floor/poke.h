/*
 * Sites in text that is written through a second view of the same memory, and five ways to change them that check
 * nothing. A site is the NOP of five bytes or a jump over six; its function returns 1 or 2.
 */
#ifndef POKE_H
#define POKE_H

#include <stddef.h>

/* Maps text with so many functions, `stride` bytes apart, all with NOPs. NULL if the system does not let us. */
const unsigned char *poke_open(size_t sites, size_t stride);

/* Has SIGTRAPs handled for that text, in front of who handles them now; and no longer. */
int poke_handle_traps(void);
int poke_stop_handling(void);

/*
 * Turn the first `sites` sites on or off. -1 if the system does not let us.
 * by three passes over all of them; by three passes over 256 at a time; one by one.
 */
int poke_passes(size_t sites, int on);
int poke_chunks(size_t sites, int on);
int poke_one_by_one(size_t sites, int on);

/*
 * The same without INT3: an aligned store of eight bytes for each site, and one synchronisation. Not to be relied on:
 * docs/poke.md.
 */
int poke_stores(size_t sites, int on);

/* The same one by one in private memory whose protection is flipped for each, which no thread may be running. */
int poke_flip_open(size_t sites, size_t stride);
int poke_flips(size_t sites, int on);

/* One call of each of three system calls, and nothing else: what a batch of one costs at least. */
int poke_three_writes(void);

#endif
