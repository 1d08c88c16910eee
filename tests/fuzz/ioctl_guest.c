/* Guests of the ioctl fuzzer: their tables, their starting states, their random code.
 *
 * Half of them run in 64-bit mode, with code that mostly computes, loads and stores, so that it is translated; a fault or an
 * interrupt ends in a handler that goes on with other code.  The rest is wilder: any mode, devices, model-specific registers,
 * bytes that mean nothing. */
#include <string.h>
#include "ioctl.h"
#include "uvirt.h"

/* Guest memory: vectors of real mode at 0, then these. */
enum {
  HANDLER16 = 0x600,
  TABLES = 0x2000, /* four pages: PML4, PDPT, page directories of the first and the fourth GiB */
  IDT = 0x6000,
  GDT = 0x7000,
  TSS = 0x7080,
  HANDLER = 0x7200, /* the second for vectors with an error code */
  HANDLER_CODE = 0x7280,
  CODE = 0x8000,    /* pieces of a few hundred bytes, some across pages */
  CODE_STEP = 0x600,
  CODE_PLACES = 8,
  STACK = 0x40000,
  FAULT_STACK = 0x48000,
  TSS_SELECTOR = 0x18,
};

struct piece {
  u8 len, bytes[15];
};
#define BYTES(...)                                                                                                               \
  {                                                                                                                              \
    sizeof((const u8[]){__VA_ARGS__}), {                                                                                         \
      __VA_ARGS__                                                                                                                \
    }                                                                                                                            \
  }

/* What a compiler emits, in 64-bit mode; RDI and RSI point to slots 1 to 3. */
static const struct piece plain[] = {
    BYTES(0x48, 0x01, 0xd8),                                     /* add %rbx, %rax */
    BYTES(0x83, 0xc3, 0x07),                                     /* add $7, %ebx */
    BYTES(0x48, 0x11, 0xca),                                     /* adc %rcx, %rdx */
    BYTES(0x4d, 0x29, 0xc8),                                     /* sub %r9, %r8 */
    BYTES(0x45, 0x31, 0xd2),                                     /* xor %r10d, %r10d */
    BYTES(0x48, 0x85, 0xc0),                                     /* test %rax, %rax */
    BYTES(0x80, 0x3f, 0x00),                                     /* cmpb $0, (%rdi) */
    BYTES(0x48, 0x8b, 0x06),                                     /* mov (%rsi), %rax */
    BYTES(0x48, 0x8b, 0x5e, 0x08),                               /* mov 8(%rsi), %rbx */
    BYTES(0x4c, 0x89, 0x77, 0x10),                               /* mov %r14, 16(%rdi) */
    BYTES(0x88, 0x07),                                           /* mov %al, (%rdi) */
    BYTES(0x66, 0x89, 0x47, 0xff),                               /* mov %ax, -1(%rdi) */
    BYTES(0x48, 0x01, 0x07),                                     /* add %rax, (%rdi) */
    BYTES(0x83, 0x6f, 0x04, 0x01),                               /* subl $1, 4(%rdi) */
    BYTES(0xf0, 0x01, 0x07),                                     /* lock add %eax, (%rdi) */
    BYTES(0xf0, 0x48, 0x0f, 0xc1, 0x07),                         /* lock xadd %rax, (%rdi) */
    BYTES(0x48, 0x87, 0x07),                                     /* xchg %rax, (%rdi) */
    BYTES(0xf0, 0x0f, 0xb1, 0x0f),                               /* lock cmpxchg %ecx, (%rdi) */
    BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0f),                         /* lock cmpxchg16b (%rdi) */
    BYTES(0xf0, 0x0f, 0xba, 0x2f, 0x05),                         /* lock btsl $5, (%rdi) */
    BYTES(0x48, 0x0f, 0xa3, 0x07),                               /* bt %rax, (%rdi) */
    BYTES(0x48, 0x8d, 0x44, 0x3e, 0x40),                         /* lea 64(%rsi, %rdi), %rax */
    BYTES(0x48, 0xc1, 0xe0, 0x05),                               /* shl $5, %rax */
    BYTES(0x48, 0xd3, 0xe8),                                     /* shr %cl, %rax */
    BYTES(0x48, 0xf7, 0xe3),                                     /* mul %rbx */
    BYTES(0x48, 0x0f, 0xaf, 0xc3),                               /* imul %rbx, %rax */
    BYTES(0x48, 0xf7, 0xf3),                                     /* div %rbx: may fault */
    BYTES(0x48, 0x0f, 0x44, 0xc3),                               /* cmove %rbx, %rax */
    BYTES(0x0f, 0x92, 0x07),                                     /* setb (%rdi) */
    BYTES(0x0f, 0xb6, 0x06),                                     /* movzbl (%rsi), %eax */
    BYTES(0x48, 0x63, 0xc3),                                     /* movslq %ebx, %rax */
    BYTES(0x74, 0x02, 0xff, 0xc3),                               /* je over inc %ebx */
    BYTES(0x72, 0x03, 0x48, 0xff, 0x07),                         /* jb over incq (%rdi) */
    BYTES(0xff, 0xcb, 0x75, 0xfc),                               /* dec %ebx; jne to it */
    BYTES(0xb3, 0x10, 0x03, 0x06, 0xfe, 0xcb, 0x75, 0xfa),       /* 16 times add (%rsi), %eax */
    BYTES(0xe8, 0x00, 0x00, 0x00, 0x00, 0x58),                   /* call behind it; pop %rax */
    BYTES(0xeb, 0x01, 0xc3, 0xe8, 0xfa, 0xff, 0xff, 0xff),       /* over a ret; call it */
    BYTES(0x41, 0x54, 0x50, 0x5b, 0x41, 0x5c),                   /* push %r12; push %rax; pop %rbx; pop %r12 */
    BYTES(0xff, 0x36, 0x58),                                     /* push (%rsi); pop %rax */
    BYTES(0xc8, 0x10, 0x00, 0x00, 0xc9),                         /* enter $16, $0; leave */
    BYTES(0x0f, 0x10, 0x06, 0x0f, 0x11, 0x07),                   /* movups (%rsi), %xmm0; movups %xmm0, (%rdi) */
    BYTES(0x0f, 0x28, 0x06),                                     /* movaps: may fault */
    BYTES(0x66, 0x0f, 0xef, 0x0e),                               /* pxor (%rsi), %xmm1: may fault */
    BYTES(0xf2, 0x0f, 0x58, 0xc1),                               /* addsd %xmm1, %xmm0 */
    BYTES(0xf2, 0x48, 0x0f, 0x2c, 0xc0),                         /* cvttsd2si %xmm0, %rax */
    BYTES(0xc5, 0xfc, 0x10, 0x06),                               /* vmovups (%rsi), %ymm0 */
    BYTES(0xd9, 0x06, 0xd9, 0x1f),                               /* flds (%rsi); fstps (%rdi) */
    BYTES(0xf3, 0xa4),                                           /* rep movsb */
    BYTES(0xb9, 0x00, 0x20, 0x00, 0x00, 0xf3, 0xab),             /* mov $8192, %ecx; rep stosl */
    BYTES(0xb9, 0x40, 0x00, 0x00, 0x00, 0xfd, 0xf3, 0xa5, 0xfc), /* backwards */
    BYTES(0xf3, 0xa6),                                           /* repe cmpsb */
    BYTES(0xa4),                                                 /* movsb */
    BYTES(0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00),             /* add $4096, %rdi */
    BYTES(0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00),             /* add $4096, %rsi */
    BYTES(0x48, 0x81, 0xe7, 0xf8, 0xff, 0x3f, 0x00),             /* and $0x3ffff8, %rdi */
    BYTES(0x48, 0x81, 0xe6, 0xf8, 0xff, 0x3f, 0x00),             /* and $0x3ffff8, %rsi */
    BYTES(0x48, 0x81, 0xcf, 0x00, 0x00, 0x10, 0x00),             /* or $0x100000, %rdi */
    BYTES(0x48, 0x81, 0xce, 0x00, 0x00, 0x20, 0x00),             /* or $0x200000, %rsi */
    BYTES(0x9c, 0x58),                                           /* pushf; pop %rax */
    BYTES(0xfb),                                                 /* sti */
    BYTES(0xfa),                                                 /* cli */
    BYTES(0xf3, 0x90),                                           /* pause */
    BYTES(0xc6, 0x05, 1, 0, 0, 0, 0x90, 0x90),                   /* movb $nop, 1(%rip): the code behind it */
    BYTES(0xc6, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc6),             /* its own first byte, with what it is */
};

/* Most mean something in 16, 32 and 64 bits. */
static const struct piece wild[] = {
    BYTES(0xa4),       /* movsb */
    BYTES(0xe6, 0x10), /* out %al, $0x10 */
    BYTES(0xe4, 0x20), /* in $0x20, %al */
    BYTES(0xe6, 0x20), /* EOI of the PIC */
    BYTES(0xe6, 0x21), /* its mask */
    BYTES(0xe6, 0x43), /* the PIT */
    BYTES(0xe6, 0x40),
    BYTES(0x6c), /* ins, outs, rep outs */
    BYTES(0x6e),
    BYTES(0xf3, 0x6e),
    BYTES(0xf4),             /* hlt */
    BYTES(0xfb, 0xf4),       /* sti; hlt */
    BYTES(0xcd, 0x40),       /* int $0x40 */
    BYTES(0xcc),             /* int3 */
    BYTES(0x0f, 0x32),       /* rdmsr */
    BYTES(0x0f, 0x30),       /* wrmsr */
    BYTES(0x0f, 0xa2),       /* cpuid */
    BYTES(0x0f, 0x01, 0xc1), /* vmcall */
    BYTES(0x0f, 0x01, 0x3f), /* invlpg (%rdi) */
    BYTES(0x0f, 0x20, 0xd8), /* mov %cr3, %rax and back */
    BYTES(0x0f, 0x22, 0xd8),
    BYTES(0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8),
    BYTES(0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xf8, 0x07, 0x0f, 0x22, 0xe0), /* CR4.PGE changes */
    BYTES(0x0f, 0x21, 0xf8),                                           /* mov %dr7, %rax */
    BYTES(0x0f, 0x31),                                                 /* rdtsc */
    BYTES(0x9d),                                                       /* popf */
    BYTES(0x0f, 0xaa),                                                 /* rsm */
    BYTES(0xeb, 0xfe),                                                 /* jmp . */
    BYTES(0x0f, 0xae, 0x07),                                           /* fxsave, fxrstor */
    BYTES(0x0f, 0xae, 0x0f),
    BYTES(0x0f, 0xa1),             /* pop %fs */
    BYTES(0xba, 0, 0, 0xe0, 0xfe), /* mov $0xfee00000, %edx */
    BYTES(0x89, 0x42, 0x30),       /* the local APIC's registers */
    BYTES(0x8b, 0x82, 0x90, 3, 0, 0),
};

/* ---- code ---- */

static size_t put_piece(u8 *to, const struct piece *p) {
  memcpy(to, p->bytes, p->len);
  return p->len;
}

/* A store of a byte to other code, far from where this one runs. */
static size_t put_code_write(struct source *s, u8 *to) {
  u32 at = CODE + (u32)choose_below(s, CODE_PLACES) * CODE_STEP + (u32)choose_below(s, 64);
  to[0] = 0xc6, to[1] = 0x04, to[2] = 0x25;
  memcpy(to + 3, &at, 4);
  to[7] = choose_below(s, 2) ? 0x90 : (u8)choose(s);
  return 8;
}

static size_t put_one(struct source *s, u8 *to, bool tame) {
  if (choose_below(s, tame ? 24 : 3)) return put_piece(to, &plain[choose_below(s, ARRAY_SIZE(plain))]);
  if (!choose_below(s, 8)) return put_code_write(s, to);
  if (choose_below(s, 8)) return put_piece(to, &wild[choose_below(s, ARRAY_SIZE(wild))]);
  choose_bytes(s, to, 4);
  return 4;
}

/* It ends with a jump to its start or to another piece. */
static void put_code(struct source *s, unsigned place, bool tame) {
  u8 code[512];
  u64 at = CODE + place * CODE_STEP;
  size_t n = 0, limit = 16 + choose_below(s, 256);
  if (!choose_below(s, 4)) at += CODE_STEP - limit / 2; /* meets the next one */
  while (n < limit) n += put_one(s, code + n, tame);
  u64 to = choose_below(s, 2) ? at : CODE + choose_below(s, CODE_PLACES) * CODE_STEP;
  s32 displacement = (s32)(to - (at + n + 5));
  code[n] = 0xe9;
  memcpy(code + n + 1, &displacement, 4);
  memory_put(memory_piece(0) + at, code, n + 5);
}

/* ---- tables ---- */

static void put_gate(u64 table, unsigned vector, u64 handler) {
  u64 gate[2] = {(handler & 0xffff) | 8ull << 16 | 1ull << 32 | 0x8eull << 40 | (handler >> 16 & 0xffff) << 48, handler >> 32};
  memory_put(memory_piece(0) + table + vector * 16, gate, sizeof(gate));
}

/* Goes on at one of the places, with usable registers. */
static void put_handler(void) {
  static const u8 drop[] = {0x48, 0x83, 0xc4, 0x08}; /* add $8, %rsp */
  static const u8 handler[] = {0x0f,
                               0x31, /* rdtsc */
                               0xc1,
                               0xe8,
                               0x05,
                               0x83,
                               0xe0,
                               CODE_PLACES - 1, /* shr $5, %eax; and */
                               0x69,
                               0xc0,
                               CODE_STEP & 0xff,
                               CODE_STEP >> 8,
                               0,
                               0, /* imul $CODE_STEP, %eax, %eax */
                               0x05,
                               CODE & 0xff,
                               CODE >> 8,
                               0,
                               0, /* add $CODE, %eax */
                               0x48,
                               0x89,
                               0x04,
                               0x24, /* mov %rax, (%rsp): RIP */
                               0x48,
                               0xc7,
                               0x44,
                               0x24,
                               0x18,
                               STACK & 0xff,
                               STACK >> 8 & 0xff,
                               STACK >> 16,
                               0, /* RSP */
                               0xbf,
                               0x00,
                               0x00,
                               0x10,
                               0x00, /* mov $0x100000, %edi */
                               0xbe,
                               0x00,
                               0x00,
                               0x20,
                               0x00, /* mov $0x200000, %esi */
                               0x0f,
                               0xb6,
                               0xc9, /* movzbl %cl, %ecx */
                               0x81,
                               0x64,
                               0x24,
                               0x10,
                               0xff,
                               0xfe,
                               0xff,
                               0xff, /* andl: no TF */
                               0x48,
                               0xcf};
  memory_put(memory_piece(0) + HANDLER, handler, sizeof(handler));
  memory_put(memory_piece(0) + HANDLER_CODE, drop, sizeof(drop));
  memory_put(memory_piece(0) + HANDLER_CODE + sizeof(drop), handler, sizeof(handler));
  for (unsigned v = 0; v < 256; v++) {
    bool error = v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21;
    put_gate(IDT, v, error ? HANDLER_CODE : HANDLER);
  }
}

void guest_put_tables(void) {
  u64 pml4[1] = {(TABLES + 0x1000) | 7}, pdpt[4] = {(TABLES + 0x2000) | 7, 0, 0, (TABLES + 0x3000) | 7};
  u64 low[4] = {0x83 | 4, 0x200087, 0x400087, 0x600087}, apic = 0xfee00087;
  u64 gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x0000890000000067 | (u64)(TSS & 0xffffff) << 16, 0};
  u8 tss[0x68] = {0};
  u64 fault_stack = FAULT_STACK;
  u32 vectors[256];
  u8 *ram = memory_piece(0);
  for (unsigned n = 0; n < 256; n++) vectors[n] = HANDLER16;
  memcpy(tss + 0x24, &fault_stack, 8); /* IST1 */
  memory_put(ram, vectors, sizeof(vectors));
  memory_put(ram + HANDLER16, "\xcf", 1);
  memory_put(ram + TABLES, pml4, sizeof(pml4));
  memory_put(ram + TABLES + 0x1000, pdpt, sizeof(pdpt));
  memory_put(ram + TABLES + 0x2000, low, sizeof(low));
  memory_put(ram + TABLES + 0x3000 + 8 * 503, &apic, 8);
  memory_put(ram + GDT, gdt, sizeof(gdt));
  memory_put(ram + TSS, tss, sizeof(tss));
  put_handler();
}

/* ---- starting states ---- */

static void set_mode(struct source *s, int vcpu, unsigned mode) {
  struct kvm_sregs r;
  if (uvirt_ioctl(vcpu, KVM_GET_SREGS, &r)) return;
  struct kvm_segment flat = {.limit = 0xffff, .type = 3, .present = 1, .s = 1};
  r.cr0 = 0x10, r.cr4 = 0x600, r.efer = 0;
  if (mode) flat.limit = ~0u, flat.g = 1, flat.db = 1, flat.selector = 0x10, r.cr0 |= 1;
  r.ds = r.es = r.fs = r.gs = r.ss = r.cs = flat;
  if (mode) r.cs.type = 11, r.cs.selector = 8;
  if (mode >= 2) {
    r.cr0 |= 0x80000022u, r.cr4 |= 0x20, r.efer = 0x500, r.cr3 = TABLES;
    r.cs.l = 1, r.cs.db = 0;
    r.idt.base = IDT, r.idt.limit = 0xfff, r.gdt.base = GDT, r.gdt.limit = 0x27;
    r.tr = (struct kvm_segment){.base = TSS, .limit = 0x67, .selector = TSS_SELECTOR, .type = 11, .present = 1};
  }
  uvirt_ioctl(vcpu, KVM_SET_SREGS, &r);
}

void guest_restart(struct source *s, int vcpu) {
  struct kvm_regs r;
  unsigned mode = (unsigned)choose_below(s, 6), place = (unsigned)choose_below(s, CODE_PLACES);
  bool tame = mode >= 3;
  if (!choose_below(s, tame ? 2 : 4)) guest_put_tables();
  for (unsigned n = 0; n < CODE_PLACES; n++)
    if (!choose_below(s, n == place ? 2 : 8)) put_code(s, n, tame);
  set_mode(s, vcpu, mode);
  for (unsigned k = 0; k < sizeof(r) / 8; k++)
    ((u64 *)&r)[k] = choose_below(s, 2) ? choose_below(s, 1 << 20) : choose_below(s, 64);
  if (!choose_below(s, 4)) r.rcx = 0x4b564d00 + choose_below(s, 8), r.rdx = 0;
  if (tame) r.rsp = STACK, r.rdi = (1 + choose_below(s, 3)) << 20, r.rsi = (1 + choose_below(s, 3)) << 20;
  r.rip = CODE + place * CODE_STEP;
  r.rflags = 2 | (choose_below(s, 2) << 9);
  uvirt_ioctl(vcpu, KVM_SET_REGS, &r);
  struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};
  uvirt_ioctl(vcpu, KVM_SET_MP_STATE, &runnable);
}
