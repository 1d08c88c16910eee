/* The state of an x86 VM and vCPU, grouped by owner, and the control-flow values every part returns.
 *
 * Who may write what: a group belongs to the folder named above it; others go through that folder's functions.
 * Everything of a vCPU is touched only by the thread that holds vcpu->mutex, except fields marked atomic.
 */
#ifndef X86_VCPU_H
#define X86_VCPU_H

#include "core/vm.h"
#include "x86/fpu.h"
#include "x86/regs.h"
#include "x86/seg.h"
#include "x86/mmu/tlb.h"

struct x86_block;
struct x86_lapic;
struct x86_irqchip;
struct x86_cpuid;
struct x86_msr_state;
struct x86_pv;
struct x86_pmu;
struct x86_pmu_filter;
struct x86_jcache_entry;

/* What an instruction handler or a memory access tells its caller.  0 goes on; everything else ends the block. */
enum x86_flow {
  X86_OK = 0,      /* done; next instruction */
  X86_BRANCH,      /* done; handler has set c->rip to the target (already truncated to the operand size) */
  X86_END,         /* done; RIP moves past the instruction, but the block may not go on (mode, mapping, interrupt flag changed) */
  X86_FAULT,       /* c->fault holds an exception; the instruction has changed nothing; RIP stays at it */
  X86_RESTART,     /* nothing done (or one iteration of a REP): RIP stays at the instruction, which runs again */
  X86_EXIT,        /* as X86_RESTART, and KVM_RUN must return first: c->exit says how (an I/O read, a userspace MSR, ...) */
};

/* A pending exception, as a value.  cr2 is meaningful for #PF; payload for #DB (DR6 bits). */
struct x86_fault {
  u8 vector;
  bool has_error;
  bool trap;       /* #DB trap, #BP, #OF: RIP already past the instruction */
  u32 error;
  u64 payload;     /* CR2 for #PF, DR6 bits for #DB */
};

enum x86_vec { VEC_DE, VEC_DB, VEC_NMI, VEC_BP, VEC_OF, VEC_BR, VEC_UD, VEC_NM, VEC_DF, VEC_CSO, VEC_TS, VEC_NP, VEC_SS, VEC_GP, VEC_PF,
  VEC_MF = 16, VEC_AC, VEC_MC, VEC_XM, VEC_VE, VEC_CP };

enum { REQ_EVENT = REQ_ARCH, REQ_TRIPLE_FAULT, REQ_CLOCK, REQ_HALT, REQ_APIC, REQ_EOI_EXIT, REQ_TPR_EXIT, REQ_PMU, REQ_FORGET };

/* Interrupt shadows (x86_vcpu.int_shadow): the first two are KVM_X86_SHADOW_INT_*. */
#define X86_SHADOW_MOV_SS  1
#define X86_SHADOW_STI     2
#define X86_SHADOW_RUNNING 4 /* the shielded instruction has begun */

/* Reasons to leave a block after the running instruction (x86_vcpu.stop). */
#define X86_STOP_IO    1 /* posted device writes wait in c->io */
#define X86_STOP_DEBUG 2 /* c->pending_dbg */
#define X86_STOP_REQUEST 4 /* a request that must be acted on before the next instruction */
#define X86_STOP_LOCK 8    /* c->bus_lock */

/* Input/output that left for the client, or that it has answered (x86/mmu/io.c). */
#define X86_IO_FRAGS 16
struct x86_io_frag {
  u64 gpa;
  u8 len; /* 1..8 */
  u8 data[8];
};
struct x86_io {
  unsigned n_reads, read_pos;   /* reads of the current instruction answered so far / consumed by its re-execution */
  struct x86_io_frag reads[X86_IO_FRAGS];
  unsigned n_writes, write_pos; /* posted writes that still have to leave for the client */
  struct x86_io_frag writes[X86_IO_FRAGS];
  bool read_wait;               /* a read fragment is with the client */
  bool pio_wait, pio_done;      /* a port access is with the client / was answered */
  u16 port;
  u8 pio_size;
  unsigned pio_count;           /* elements asked for */
  bool pio_in;
  u32 pio_value;
  u64 lin_ip;                   /* linear address of the instruction the above belongs to */
};

/* Where an indirect branch of translated code goes on: linear address -> code. */
#define X86_TARGET_BITS 16
#define X86_TARGET_MASK (((1u << X86_TARGET_BITS) - 1) * 32) /* of an offset */
#define X86_CODE_DELTAS 16
struct x86_code_target {
  u64 lin;
  u64 generation; /* x86_code_state.generation under which it was found */
  const void *code;
  struct x86_code *owner;
};

/* What translated code keeps in memory (translate/). */
struct x86_code_state {
  struct x86_vcpu *self;
  u64 page;          /* linear address of the page the running code lies in */
  u64 generation;    /* x86_code_generation() and what else decides what a linear address leads to */
  u64 scratch;
  u64 from, to, room; /* a string instruction: from linear to host addresses, the larger of two offsets in pages */
  const u64 *deltas[TLB_COUNT]; /* where the deltas of the first entry of each table of the software TLB are, by enum x86_tlb_index */
  const void *callee; /* within a call */
  u64 delta[X86_CODE_DELTAS]; /* within a block: from linear to host address, of a page that was checked */
  u64 link_to;       /* RIP when it left ... */
  u32 link_resets;   /* ... and how often everything had been forgotten */
  u32 link;          /* the jump that left: four times the offset of its displacement in the arena, and two bits (translate/block.c); 0: none */
  u32 salt;          /* where addresses of the generation lie in targets[]: 0 for supervisor code, so that programs at the same addresses have their own */
  int result;        /* flow of an instruction that leaves translated code */
  u16 flags;         /* arithmetic flags as LAHF and SETO give them */
  u8 vectors;        /* enum x86_vector_level: the host's vector registers hold the guest's */
  bool x87;          /* the host's x87 registers hold the guest's, which masks all exceptions */
  bool can_x87;      /* this host keeps what it has to */
  u16 host_fcw;      /* of the client, while x87 is set */
  s32 x87_ip;        /* the last x87 instruction since then: from the start of x87_page; negative: none */
  u64 x87_page;
  bool wide;         /* the host has AVX-512, ... */
  bool avx, bmi2;    /* ... AVX, BMI2 */
  void (*interpret)(void), (*load_vectors)(void), (*load_x87)(void), (*leave)(void), (*syscall)(void), (*sysret)(void);
  u64 host_gs;       /* of the client */
  u64 host_rsp;      /* while it runs: the lowest frame of calls (translate/branch.c) ... */
  u64 host_rsp_min;  /* ... and how far down they may reach */
  u64 no_return;     /* what the lowest one expects: a number no guest knows */
  bool on;           /* GS is ours */
  bool once;         /* exceptions are the caller's: for tests */
  struct x86_code_target targets[1u << X86_TARGET_BITS];
  bool segmented;    /* segments are looked at: 16-bit code, and 32-bit code whose segments are not flat */
  u64 cs_key;        /* then: what makes an instruction pointer the key of targets[]: the base of CS, or a number for its base and limit */
  struct { u32 base, limit, number; } cs_known[64];
  u32 cs_numbers;    /* given out */
  void (*interpret_at)(void);
};

/* What a descriptor of the GDT comes to (cpu/fast64.c): the descriptor is read each time. */
#define X86_KNOWN_SEGMENTS 8
struct x86_known_segment {
  u64 descriptor;
  struct x86_seg seg;
};

struct x86_vcpu {
  struct vcpu core;

  /* --- hot: registers (exec/) --- */
  u64 regs[X86_NREGS];     /* RAX..R15, then a constant 0 (X86_REG_NONE), then RIP (X86_REG_RIP); see regs.h */
  u64 rflags;              /* complete and eager; bit 1 always set */
  u32 mode;                /* X86_MODE_* of the running code: key of decoded blocks (cpu/mode.c keeps it) */
  u8 cpl;                  /* = ss.dpl, 3 in v86, 0 in real mode */
  u8 int_shadow;           /* X86_SHADOW_*: STI or MOV SS just ran; the instruction in its shadow is running */
  u8 stop;                 /* X86_STOP_*: the block must end after the running instruction */
  bool nmi_blocked;        /* NMI blocking (until IRET) */
  u8 code64;               /* EFER.LMA && CS.L */
  bool irq_waits;          /* an interrupt may wait for IF: STI has to look (cpu/event.c keeps it) */
  bool counting;           /* a performance counter wants every block counted (pmu/) */
  bool counts_cycles;      /* one counts cycles */
  bool bus_lock_exits;     /* bus locks end in an exit: blocks with locked instructions are never translated */
  bool bus_lock;           /* the instruction that just ran locked the bus */
  struct x86_tlb_entry *tlb; /* the TLB of the current access rights (mmu/) */
  struct x86_seg seg[6];   /* ES CS SS DS FS GS (cpu/seg.c) */
  struct x86_jcache_entry *jcache; /* linear address -> block (block.c) */
  u64 pages_protected;     /* how many of the VM's pages of code no store reaches the fast way (block.c) */
  struct x86_fault fault;
  const struct x86_insn *cur; /* the instruction at work, NULL between blocks: a host fault on guest memory finds RIP by it */
  struct x86_block *publishing; /* being compared with blocks->lock held: a host fault must free it and release the lock */

  /* --- control registers and system segments (cpu/) --- */
  u64 cr0, cr2, cr3, cr4, cr8, efer, xcr0, xss;
  u64 dr[8];               /* 0-3, 6, 7; 4 and 5 unused */
  struct x86_seg ldtr, tr;
  struct x86_known_segment known_segments[X86_KNOWN_SEGMENTS]; /* by selector */
  struct { u64 base; u16 limit; } gdtr, idtr;
  u64 pdptr[4];            /* PAE page-directory-pointer registers (mmu/walk.c) */
  u64 star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
  u64 sysenter_cs, sysenter_esp, sysenter_eip;
  u64 apic_base;
  u32 pkru;

  /* --- extended state (exec/native) --- */
  struct x86_fpu fpu;

  /* --- events (cpu/event.c) --- */
  struct {
    bool pending;          /* an exception to deliver before the next instruction (KVM_SET_VCPU_EVENTS, KVM_NMI races) */
    bool injected;         /* its delivery was interrupted by an exit; deliver again */
    bool has_payload;      /* of one that is pending: CR2 or DR6 change when it is delivered */
    struct x86_fault ex;
  } exception;
  struct { bool injected; bool soft; u8 nr; u8 len; } interrupt;
  u64 outside_irqs;        /* vm->outside_irqs when guest memory was last taken for written by others */
  bool nmi_injected;
  _Atomic unsigned nmi_pending; /* set by any thread together with REQ_EVENT */
  _Atomic bool smi_pending;
  bool smm, smm_nmi_mask;
  u64 smbase;
  _Atomic u64 apic_events; /* bit 0 INIT, bit 1 SIPI (vector in bits 8-15): set by any thread together with REQ_EVENT */
  u32 mp_state;            /* KVM_MP_STATE_* */
  bool triple_fault;
  u64 shut_since;          /* host TSC since when events follow one another and no instruction ends; 0: they do not */
  u64 guest_debug;         /* KVM_SET_GUEST_DEBUG control word */
  u64 guest_debug_dr[8];
  u64 pending_dbg;         /* DR6 bits of a debug trap after the current instruction */

  /* --- memory (mmu/) --- */
  struct x86_mmu mmu;
  struct x86_code_state code;
  struct x86_io io;
  u8 left_len;             /* length of the instruction that x86_leave_insn() left in the middle */
  int (*complete_io)(struct x86_vcpu *c); /* called on the next KVM_RUN before anything else; X86_OK/END or X86_EXIT */
  struct { u8 buf[64]; u8 len; u64 lin[2]; u8 n[2]; void *host[2]; u64 gpa[2]; u8 kind; } rmw; /* see mmu/access.h */
  struct { bool armed; u64 lin; u8 line[64]; } monitor; /* MONITOR found these bytes there */
  struct { u8 old[64]; u8 len; u8 *host; u64 gpa; } torn; /* what a store across two pages had overwritten on the first one */

  /* --- parts with a structure of their own --- */
  bool tpr_reporting;            /* KVM_TPR_ACCESS_REPORTING */
  struct x86_lapic *lapic;       /* NULL without in-library interrupt controllers (irqchip/) */
  struct x86_cpuid *cpuid;       /* cpuid/ */
  struct x86_msr_state *msr;     /* msr/ */
  struct x86_pv *pv;             /* pv/ */
  struct x86_pmu *pmu;           /* pmu/ */

  /* --- time (cpu/tsc.c): guest TSC = (host TSC * tsc_mul >> 48) + tsc_offset --- */
  u64 tsc_offset, tsc_mul, tsc_khz, tsc_adjust;
  bool tsc_scaled;

  u8 isa;                  /* which CPUID configuration decoded blocks belong to (part of their key) */
};

struct x86_vm {
  struct vm core;
  struct x86_blocks *blocks;     /* block cache (block.c) */
  struct x86_code_cache *code;   /* translations; NULL: none are made (translate/) */
  struct x86_idle *idle;         /* idle.c; NULL: blocks stay */
  struct x86_irqchip *irqchip;   /* PIC pair, I/O APIC; NULL, or irqchip->split (irqchip/) */
  struct x86_pit *pit;
  u64 tss_addr, identity_map_addr;
  u32 boot_cpu_id;
  u64 disabled_quirks;
  u64 tsc_khz;                   /* default for new vCPUs; the host's */
  struct x86_vm_clock *clock;    /* kvmclock base (pv/) */
  u32 x2apic_format;             /* KVM_CAP_X2APIC_API flags */
  bool exception_payload, triple_fault_event;
  u64 user_msr_mask;             /* KVM_CAP_X86_USER_SPACE_MSR reasons */
  struct x86_msr_filter *msr_filter; /* read by running vCPUs alone */
  struct x86_pmu_filter *pmu_filter; /* RCU */
  bool pmu_disabled;             /* KVM_CAP_PMU_CAPABILITY */
  bool bus_lock_exits;           /* KVM_CAP_X86_BUS_LOCK_EXIT, for vCPUs whose CPUID table is set from now on */
  u64 exits_disabled;            /* KVM_CAP_X86_DISABLE_EXITS */
  u32 notify_flags, notify_window; /* KVM_CAP_X86_NOTIFY_VMEXIT; set before the first vCPU */
  u64 hypercall_exits;           /* KVM_CAP_EXIT_HYPERCALL: bits by number */
  bool exit_on_emulation_failure;
};

static inline struct x86_vcpu *x86_vcpu(struct vcpu *v) { return container_of(v, struct x86_vcpu, core); }
static inline struct x86_vm *x86_vm(struct vm *vm) { return container_of(vm, struct x86_vm, core); }
static inline struct x86_vm *x86_vm_of(struct x86_vcpu *c) { return x86_vm(c->core.vm); }

/* Fills c->fault and returns X86_FAULT. */
static inline int x86_fault(struct x86_vcpu *c, unsigned vector) {
  c->fault = (struct x86_fault){.vector = (u8)vector};
  return X86_FAULT;
}
static inline int x86_fault_code(struct x86_vcpu *c, unsigned vector, u32 error) {
  c->fault = (struct x86_fault){.vector = (u8)vector, .has_error = true, .error = error};
  return X86_FAULT;
}
#define x86_gp0(c) x86_fault_code(c, VEC_GP, 0)
#define x86_ud(c)  x86_fault(c, VEC_UD)

#endif
