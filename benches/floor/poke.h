/*
 * Sites in text that is written through a second mapping of the same memory, and five ways to change them without any
 * check. A site is the NOP of five bytes or a jump over six bytes; its function returns 1 or 2.
 */
#ifndef POKE_H
#define POKE_H

#include <stddef.h>

/* Maps text with `sites` functions, `stride` bytes apart, all with NOPs. Returns NULL if a system call fails. */
const unsigned char *poke_open(size_t sites, size_t stride);

/* Install a SIGTRAP handler for this text in front of the existing one, and remove it. */
int poke_handle_traps(void);
int poke_stop_handling(void);

/*
 * Turn the first `sites` sites on or off. Return -1 if a system call fails. By three passes over all sites; by three
 * passes over 256 sites at a time; one site at a time.
 */
int poke_passes(size_t sites, int on);
int poke_chunks(size_t sites, int on);
int poke_one_by_one(size_t sites, int on);

/*
 * Changes the sites without INT3: an aligned store of eight bytes for each site, and one synchronisation. Not reliable:
 * see docs/poke.md.
 */
int poke_stores(size_t sites, int on);

/* Change private memory one site at a time by changing its protection. No thread may execute this memory. */
int poke_flip_open(size_t sites, size_t stride);
int poke_flips(size_t sites, int on);

/* Makes the three writes and three synchronisations of a batch of one site, and nothing else. */
int poke_three_writes(void);

#endif
