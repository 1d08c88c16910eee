/* Decoded blocks: keyed by host address and mode, as slots may show one page at several guest-physical addresses; shared by the VM's vCPUs;
 * invalidated by stores.
 *
 * A block lies within one guest page (an instruction that crosses the end of the page is a block of its own, with two pages).
 *
 * Stale code.  (1) Guest stores: a page with blocks is never writable in a TLB, so the store takes the slow path, which calls
 * x86_blocks_written() after writing.  (2) Writes by others (the client, its devices, the host kernel) cannot be seen; they are only allowed to matter
 * after the guest could have learned of them, that is after an exit to the client or an interrupt from outside the VM's processors.  Both bump vm->write_epoch; a
 * block whose epoch is older compares its bytes with memory before it runs.
 */
#ifndef X86_BLOCK_H
#define X86_BLOCK_H

#include "x86/insn.h"

#define X86_BLOCK_MAX 64 /* instructions */

struct x86_block {
  struct x86_block *hash_next;
  struct x86_block *page_next, *page2_next; /* on the list of the first and of the second page; dead ones by page_next */
  u64 gpa;             /* of the first byte, where it was found first */
  u64 gpa2;            /* second page of a crossing block, else ~0 */
  const u8 *host, *host2; /* the bytes in memory; host2: NULL or the second page */
  _Atomic u64 epoch;   /* vm->write_epoch when the bytes were last compared */
  u32 mode;
  u16 len;
  u8 n, isa;
  _Atomic bool dead;
  bool interpreted;    /* never translated: the interpreter looks at its locked instructions */
  u32 runs;            /* of the interpreter, roughly: a block that runs often is translated */
  struct x86_code *_Atomic code[2 * TLB_COUNT]; /* translations, by the access rights of their memory accesses; then those that look at segments */
  u8 *bytes;           /* copy of the code */
  struct x86_insn insn[]; /* n of them, then one whose fn is x86_exec_fallthrough */
};

struct x86_jcache_entry {
  u64 lin;
  u64 gen;
  u32 mode;
  struct x86_block *block;
};
#define X86_JCACHE_BITS 14
static inline struct x86_jcache_entry *x86_jcache_slot(struct x86_vcpu *c, u64 lin) {
  u32 salt = c->cpl == 3 ? (u32)c->mmu.gen.now[1] * 0x9e3779b1u >> 16 : 0; /* programs at the same addresses have their own */
  return &c->jcache[(lin ^ (lin >> X86_JCACHE_BITS) ^ salt) & ((1u << X86_JCACHE_BITS) - 1)];
}

int x86_blocks_create(struct x86_vm *vm);
void x86_blocks_destroy(struct x86_vm *vm);

/* Runs blocks until a request is pending or an instruction ends with something the loop must handle.
 * Returns X86_OK (a request is pending), X86_FAULT (deliver c->fault; RIP is at the instruction), X86_EXIT. */
int x86_run_blocks(struct x86_vcpu *c);

/* RIP after a block that ended with instruction `last` and result r: the flow of the loop. */
int x86_finish_block(struct x86_vcpu *c, const struct x86_insn *last, int r);

/* A host fault on guest memory unwound out of the loop: RIP goes to the instruction that was at work, locks are released. */
void x86_blocks_abandon(struct x86_vcpu *c);

/* REQ_PROTECT: pages have become code. */
void x86_blocks_protected(struct x86_vcpu *c);

/* A store has written [host, host+len) of a page that has blocks: kills the blocks it touches. */
void x86_blocks_written(struct x86_vm *vm, const void *host, unsigned len);
/* Whether the page has blocks (then it may not become writable in a TLB). */
bool x86_page_has_code(struct vm *vm, const void *host);
/* Everything dies: slot changes. */
void x86_blocks_flush(struct x86_vm *vm);
/* Everything dies and its memory goes back to the host, unless it is little.  On a vCPU between blocks. */
void x86_blocks_forget(struct x86_vcpu *c);

#endif
