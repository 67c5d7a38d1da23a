/*
 * The floor: the least work of a loader that keeps modload's memory rules. Text and read-only data are never writable;
 * both are staged in private memory and written once through /proc/self/mem; freed text is INT3. But the floor checks
 * and registers nothing, memory is a bump allocator, and it knows only the relocations of the benches' objects. Any
 * other object makes it trap, or worse.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STRIPE = 4 << 20, INT3 = 0xcc };
enum { TEXT, RODATA, DATA, STRIPES };

/* The address of a stripe, the address where its bytes are written first (data: in place), and the used size. */
static struct {
	unsigned char *place, *staging;
	size_t used;
} stripes[STRIPES];

static unsigned char traps[STRIPE];
static unsigned char *file_buffer;
static int memory = -1;

/* The module. Missing sections and SHN_ABS have the address 0. */
static const unsigned char *image;
static const Elf64_Sym *symbols, *symbols_end;
static const char *strings;
static uint64_t address[1 << 16];

static unsigned char *map(void *at, int protection, int flags)
{
	void *mapped = mmap(at, STRIPE, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return mapped == MAP_FAILED ? NULL : mapped;
}

static int put(int stripe, const unsigned char *bytes)
{
	size_t size = stripes[stripe].used;

	return pwrite(memory, bytes, size, (off_t)(uintptr_t)stripes[stripe].place) == (ssize_t)size ? 0 : -1;
}

int floor_open(void)
{
	static const int protections[STRIPES] = { PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE };

	memset(traps, INT3, sizeof traps);
	memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	file_buffer = map(NULL, PROT_READ | PROT_WRITE, MAP_POPULATE);
	if (memory < 0 || !file_buffer)
		return -1;
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0))
		return -1;
	for (int stripe = 0; stripe < STRIPES; stripe++) {
		stripes[stripe].place = map(NULL, protections[stripe], MAP_32BIT | MAP_POPULATE);
		stripes[stripe].staging = stripes[stripe].place;
		if (stripe != DATA)
			stripes[stripe].staging = map(NULL, PROT_READ | PROT_WRITE, MAP_POPULATE);
		if (!stripes[stripe].place || !stripes[stripe].staging)
			return -1;
		/* Touches the pages: as traps for text, as zeros otherwise. */
		stripes[stripe].used = STRIPE;
		if (put(stripe, stripe == TEXT ? traps : file_buffer))
			return -1;
		stripes[stripe].used = 0;
	}
	return 0;
}

static int stripe_of(const Elf64_Shdr *section)
{
	if (section->sh_flags & SHF_EXECINSTR)
		return TEXT;
	return section->sh_flags & SHF_WRITE ? DATA : RODATA;
}

static void copy(const Elf64_Shdr *section, uint64_t *at)
{
	int stripe = stripe_of(section);
	size_t align = section->sh_addralign ? section->sh_addralign : 1;
	size_t offset = (stripes[stripe].used + align - 1) & -align;
	unsigned char *to = stripes[stripe].staging + offset;

	if (section->sh_type == SHT_NOBITS)
		memset(to, 0, section->sh_size);
	else
		memcpy(to, image + section->sh_offset, section->sh_size);
	stripes[stripe].used = offset + section->sh_size;
	*at = (uint64_t)(uintptr_t)stripes[stripe].place + offset;
}

static void relocate(const Elf64_Shdr *relas, const Elf64_Shdr *target)
{
	const Elf64_Rela *rela = (const void *)(image + relas->sh_offset);
	const Elf64_Rela *end = rela + relas->sh_size / sizeof *rela;
	uint64_t place = address[relas->sh_info];
	int stripe = stripe_of(target);
	unsigned char *staging = stripes[stripe].staging - (uintptr_t)stripes[stripe].place + place;

	for (; rela < end; rela++) {
		const Elf64_Sym *symbol = &symbols[ELF64_R_SYM(rela->r_info)];
		uint64_t value = address[symbol->st_shndx] + symbol->st_value + (uint64_t)rela->r_addend;
		unsigned char *to = staging + rela->r_offset;

		switch (ELF64_R_TYPE(rela->r_info)) {
		case R_X86_64_PC32:
		case R_X86_64_PLT32:
			value -= place + rela->r_offset;
			/* fall through */
		case R_X86_64_32:
		case R_X86_64_32S:
			memcpy(to, &value, 4);
			break;
		case R_X86_64_64:
			memcpy(to, &value, 8);
			break;
		default:
			__builtin_trap();
		}
	}
}

int floor_load(const unsigned char *object)
{
	const Elf64_Ehdr *header = (const void *)object;
	const Elf64_Shdr *sections = (const void *)(object + header->e_shoff);

	image = object;
	for (int at = 0; at < header->e_shnum; at++) {
		const Elf64_Shdr *section = &sections[at];

		address[at] = 0;
		if (section->sh_flags & SHF_ALLOC) {
			copy(section, &address[at]);
		} else if (section->sh_type == SHT_SYMTAB) {
			symbols = (const void *)(object + section->sh_offset);
			symbols_end = symbols + section->sh_size / sizeof *symbols;
			strings = (const char *)object + sections[section->sh_link].sh_offset;
		}
	}
	for (int at = 0; at < header->e_shnum; at++)
		if (sections[at].sh_type == SHT_RELA && sections[sections[at].sh_info].sh_flags & SHF_ALLOC)
			relocate(&sections[at], &sections[sections[at].sh_info]);
	for (int stripe = TEXT; stripe <= RODATA; stripe++)
		if (stripes[stripe].used && put(stripe, stripes[stripe].staging))
			return -1;
	return 0;
}

int floor_load_file(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	ssize_t size = -1;

	if (file < 0)
		return -1;
	if (!fstat(file, &status) && status.st_size <= STRIPE)
		size = read(file, file_buffer, (size_t)status.st_size);
	close(file);
	return size < 0 ? -1 : floor_load(file_buffer);
}

void *floor_symbol(const char *name)
{
	for (const Elf64_Sym *symbol = symbols; symbol < symbols_end; symbol++)
		if (!strcmp(strings + symbol->st_name, name))
			return (void *)(uintptr_t)(address[symbol->st_shndx] + symbol->st_value);
	return NULL;
}

int floor_unload(void)
{
	int failed = stripes[TEXT].used && put(TEXT, traps);

	failed |= syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0;
	for (int stripe = 0; stripe < STRIPES; stripe++)
		stripes[stripe].used = 0;
	return failed ? -1 : 0;
}
