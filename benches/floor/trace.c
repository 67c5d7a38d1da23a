/*
 * The floors of tracing: a function whose entry calls a callback that does nothing, with all general registers saved that
 * may hold arguments; and a function whose entry and return are recorded, as a time stamp and a word each, in a ring of
 * 1 MiB. They do not check whether there is room, on which stack they run, or whether the thread is in the tracer already.
 */
#include "trace.h"

#include <stdint.h>

static uint64_t ring[1 << 17] __attribute__((aligned(4096), used));
static uint64_t head __attribute__((used));

__asm__(".text\n"
	".p2align 6\n"
	"nobody: ret\n"
	".p2align 6\n"
	"callback:\n"
	"	push %rax\n push %rdi\n push %rsi\n push %rdx\n push %rcx\n push %r8\n push %r9\n push %r10\n"
	"	sub $8, %rsp\n"
	"	mov 72(%rsp), %rdi\n mov 80(%rsp), %rsi\n"
	"	call nobody\n"
	"	add $8, %rsp\n"
	"	pop %r10\n pop %r9\n pop %r8\n pop %rcx\n pop %rdx\n pop %rsi\n pop %rdi\n pop %rax\n"
	"	ret\n"
	".globl floor_callback\n"
	".p2align 6\n"
	"floor_callback:\n"
	"	call callback\n"
	"	lea 1(%rdi), %eax\n"
	"	ret\n"
	".macro record what\n"
	"	mov %rax, %r8\n"
	"	rdtsc\n"
	"	shl $32, %rdx\n or %rdx, %rax\n"
	"	mov head(%rip), %rdx\n"
	"	lea ring(%rip), %rcx\n"
	"	mov %rax, (%rcx,%rdx,8)\n"
	"	movq $\\what, 8(%rcx,%rdx,8)\n"
	"	add $2, %edx\n and $0x1ffff, %edx\n"
	"	mov %rdx, head(%rip)\n"
	"	mov %r8, %rax\n"
	".endm\n"
	".globl floor_graph\n"
	".p2align 6\n"
	"floor_graph:\n"
	"	push %rdx\n push %rcx\n"
	"	record 1\n"
	"	pop %rcx\n pop %rdx\n"
	"	call 1f\n"
	"	push %rdx\n"
	"	record 2\n"
	"	pop %rdx\n"
	"	ret\n"
	"1:	lea 1(%rdi), %eax\n"
	"	ret\n");
