#define _GNU_SOURCE
#include "poke.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { INT3 = 0xcc, CHUNK = 256, JUMP = 6 };

static const unsigned char nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
static const unsigned char jmp[5] = { 0xe9, JUMP, 0x00, 0x00, 0x00 };
/* mov $1,%eax; ret; mov $2,%eax; ret */
static const unsigned char rest[12] = { 0xb8, 1, 0, 0, 0, 0xc3, 0xb8, 2, 0, 0, 0, 0xc3 };

static unsigned char *text, *alias, *flipped;
static size_t text_size, apart;
static int turning_on;
static struct sigaction before;

static int sync_cores(void)
{
	return (int)syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
}

static void fill(unsigned char *to, size_t sites, size_t stride)
{
	memset(to, INT3, sites * stride);
	for (size_t site = 0; site < sites; site++) {
		memcpy(to + site * stride, nop, sizeof nop);
		memcpy(to + site * stride + sizeof nop, rest, sizeof rest);
	}
}

const unsigned char *poke_open(size_t sites, size_t stride)
{
	int fd = memfd_create("poke", 0);

	text_size = sites * stride;
	apart = stride;
	if (fd < 0 || ftruncate(fd, (off_t)text_size) != 0)
		return NULL;
	text = mmap(NULL, text_size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_POPULATE, fd, 0);
	alias = mmap(NULL, text_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	close(fd);
	if (text == MAP_FAILED || alias == MAP_FAILED)
		return NULL;
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
		return NULL;
	fill(alias, sites, stride);
	return text;
}

static void on_trap(int signal, siginfo_t *info, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	uintptr_t at = (uintptr_t)*rip - 1;

	if (at - (uintptr_t)text < text_size) {
		const volatile unsigned char *site = (const unsigned char *)at;

		if (*site != INT3)
			*rip = (greg_t)at;
		else
			*rip = (greg_t)(at + 5 + (__atomic_load_n(&turning_on, __ATOMIC_SEQ_CST) ? JUMP : 0));
		return;
	}
	if (before.sa_flags & SA_SIGINFO)
		before.sa_sigaction(signal, info, context);
}

int poke_handle_traps(void)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	sigfillset(&action.sa_mask);
	return sigaction(SIGTRAP, &action, &before);
}

int poke_stop_handling(void)
{
	return sigaction(SIGTRAP, &before, NULL);
}

static int passes(size_t from, size_t to, int on)
{
	const unsigned char *new = on ? jmp : nop;

	__atomic_store_n(&turning_on, on, __ATOMIC_SEQ_CST);
	for (size_t site = from; site < to; site++)
		alias[site * apart] = INT3;
	if (sync_cores() != 0)
		return -1;
	for (size_t site = from; site < to; site++)
		memcpy(alias + site * apart + 1, new + 1, 4);
	if (sync_cores() != 0)
		return -1;
	for (size_t site = from; site < to; site++)
		alias[site * apart] = new[0];
	return sync_cores();
}

int poke_passes(size_t sites, int on)
{
	return passes(0, sites, on);
}

static int in_pieces(size_t sites, int on, size_t piece)
{
	for (size_t from = 0; from < sites; from += piece)
		if (passes(from, from + piece < sites ? from + piece : sites, on) != 0)
			return -1;
	return 0;
}

int poke_chunks(size_t sites, int on)
{
	return in_pieces(sites, on, CHUNK);
}

int poke_one_by_one(size_t sites, int on)
{
	return in_pieces(sites, on, 1);
}

int poke_stores(size_t sites, int on)
{
	const uint64_t all = 0xffffffffff;
	uint64_t new = 0;

	memcpy(&new, on ? jmp : nop, sizeof nop);
	for (size_t site = 0; site < sites; site++) {
		size_t inside = site * apart % 8;
		uint64_t *at = (uint64_t *)(void *)(alias + site * apart - inside);

		/* A site that crosses eight aligned bytes cannot be changed by one store. */
		if (inside + sizeof nop > sizeof *at)
			return -1;
		__atomic_store_n(at, (*at & ~(all << 8 * inside)) | new << 8 * inside, __ATOMIC_RELAXED);
	}
	return sync_cores();
}

int poke_flip_open(size_t sites, size_t stride)
{
	flipped = mmap(NULL, sites * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (flipped == MAP_FAILED)
		return -1;
	fill(flipped, sites, stride);
	return mprotect(flipped, sites * stride, PROT_READ | PROT_EXEC);
}

int poke_flips(size_t sites, int on)
{
	for (size_t site = 0; site < sites; site++) {
		unsigned char *at = flipped + site * apart;
		unsigned char *page = (unsigned char *)((uintptr_t)at & ~(uintptr_t)4095);
		size_t size = (size_t)(at + 5 - page);

		if (mprotect(page, size, PROT_READ | PROT_WRITE) != 0)
			return -1;
		memcpy(at, on ? jmp : nop, 5);
		if (mprotect(page, size, PROT_READ | PROT_EXEC) != 0)
			return -1;
	}
	return 0;
}

int poke_three_writes(void)
{
	static const unsigned char byte = INT3;
	static unsigned char target[8];
	static int memory = -1;

	if (memory < 0)
		memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	for (int pass = 0; pass < 3; pass++)
		if (pwrite(memory, &byte, 1, (off_t)(uintptr_t)target) != 1 || sync_cores() != 0)
			return -1;
	return 0;
}
