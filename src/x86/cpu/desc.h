/* Private to cpu/: segment and gate descriptors, stacks that a transfer writes, and the commit of a new code segment.
 *
 * Intel SDM Vol. 3A 3.4.5 (segment descriptors), 3.5 (system descriptors), 5.8.3 (call gates), 6.11 and 6.14 (IDT gates).
 */
#ifndef X86_CPU_DESC_H
#define X86_CPU_DESC_H

#include "x86/vcpu.h"

/* hi is the second half of the 16-byte system descriptors of IA-32e mode; lin is where the descriptor lies. */
struct x86_desc {
  u64 lo, hi, lin;
};

/* System descriptor types, table 3-2. */
enum {
  SYS_TSS16 = 1,
  SYS_LDT = 2,
  SYS_TSS16_BUSY = 3,
  SYS_CALL16 = 4,
  SYS_TASK_GATE = 5,
  SYS_INT16 = 6,
  SYS_TRAP16 = 7,
  SYS_TSS32 = 9,
  SYS_TSS32_BUSY = 11,
  SYS_CALL32 = 12,
  SYS_INT32 = 14,
  SYS_TRAP32 = 15,
};

static inline unsigned desc_type(const struct x86_desc *d) { return (d->lo >> 40) & 15; }
static inline bool desc_s(const struct x86_desc *d) { return d->lo & BIT(44); }
static inline unsigned desc_dpl(const struct x86_desc *d) { return (d->lo >> 45) & 3; }
static inline bool desc_present(const struct x86_desc *d) { return d->lo & BIT(47); }
static inline bool desc_l(const struct x86_desc *d) { return d->lo & BIT(53); }
static inline bool desc_db(const struct x86_desc *d) { return d->lo & BIT(54); }
static inline u32 desc_limit(const struct x86_desc *d) {
  u32 limit = (u32)(d->lo & 0xffff) | (u32)((d->lo >> 32) & 0xf0000);
  return d->lo & BIT(55) ? (limit << 12) | 0xfff : limit;
}
static inline u64 desc_base(const struct x86_desc *d) {
  return ((d->lo >> 16) & 0xffffff) | ((d->lo >> 32) & 0xff000000) | (d->hi << 32);
}
static inline bool desc_code(const struct x86_desc *d) { return desc_s(d) && (desc_type(d) & 8); }
static inline bool desc_conforming(const struct x86_desc *d) { return desc_code(d) && (desc_type(d) & 4); }
static inline bool desc_writable_data(const struct x86_desc *d) { return desc_s(d) && (desc_type(d) & 10) == 2; }

/* Call, interrupt, trap and task gates. */
static inline u16 gate_sel(const struct x86_desc *d) { return (u16)(d->lo >> 16); }
static inline u64 gate_off(const struct x86_desc *d) {
  u32 low = (u32)(d->lo & 0xffff);
  return desc_type(d) & 8 ? low | (u32)((d->lo >> 32) & 0xffff0000) | (d->hi << 32) : low;
}
static inline unsigned gate_params(const struct x86_desc *d) { return (d->lo >> 32) & 31; }
static inline unsigned gate_ist(const struct x86_desc *d) { return (d->lo >> 32) & 7; }

/* Selector error code: table and index, RPL replaced by the EXT bit (SDM Vol. 3A 6.13). */
static inline u32 sel_code(u16 sel, unsigned ext) { return (sel & 0xfffcu) | ext; }
static inline bool sel_null(u16 sel) { return !(sel & 0xfffc); }

/* Reads the descriptor that a (not null) selector names.  Outside its table: `vector` with the selector. */
int x86_desc_read(struct x86_vcpu *c, u16 sel, unsigned vector, unsigned ext, struct x86_desc *d);
/* Completes a system descriptor in IA-32e mode: its upper 8 bytes; `vector` where they lie outside the table or are malformed. */
int x86_desc_read_upper(struct x86_vcpu *c, u16 sel, unsigned vector, unsigned ext, struct x86_desc *d);
/* Sets the accessed bit with a locked access if it is clear. */
int x86_desc_accessed(struct x86_vcpu *c, struct x86_desc *d);
/* Sets or clears the busy bit of a TSS descriptor in memory. */
int x86_desc_busy(struct x86_vcpu *c, u64 lin, bool busy);
struct x86_seg x86_desc_seg(u16 sel, const struct x86_desc *d);

/* Whether [ea, ea+size) is inside the segment: expand-up and expand-down limits. */
bool x86_seg_limit_ok(const struct x86_seg *s, u64 ea, u64 size);

/* The checks of a new stack segment for privilege `cpl`: selector and descriptor; `vector` (#GP or #TS) for all but not-present,
 * which is #SS. */
int x86_check_ss(struct x86_vcpu *c, u16 sel, unsigned cpl, unsigned vector, unsigned ext, struct x86_seg *ss);

/* A segment with a null selector. */
static inline struct x86_seg seg_null(u16 sel, unsigned dpl) {
  return (struct x86_seg){.sel = sel, .dpl = (u8)dpl, .unusable = 1};
}

/* CS := seg with RPL cpl; the caller updates SS, RIP and calls x86_mode_changed(). */
void x86_commit_cs(struct x86_vcpu *c, const struct x86_seg *cs, unsigned cpl);
/* Where control goes in a code segment: inside the limit, or canonical for 64-bit code; #GP(ext). */
int x86_check_target(struct x86_vcpu *c, const struct x86_seg *cs, u64 off, unsigned ext);

/* ---- stack.c: frames that a gate, call or interrupt writes ---- */
#define FRAME_MAX 40
struct x86_frame {
  unsigned n, size; /* items and their size */
  u64 item[FRAME_MAX];
};
static inline void frame_push(struct x86_frame *f, u64 v) { f->item[f->n++] = v; }

struct x86_stack {
  struct x86_seg ss;
  u64 sp;
  u64 mask;  /* of the stack pointer */
  bool flat; /* 64-bit mode: no segmentation */
  u8 cpl;    /* rights of the writes */
  u32 error; /* of #SS */
};
static inline u64 seg_sp_mask(const struct x86_seg *ss, bool code64) {
  return code64 ? ~0ull : ss->db ? 0xffffffffull : 0xffffull;
}
/* The running stack. */
struct x86_stack x86_stack_current(struct x86_vcpu *c, u32 error);
/* The stack of an inner ring from the TSS (SDM Vol. 3A 5.8.5, 6.14.2); ist 0 or 1-7. */
int x86_stack_inner(struct x86_vcpu *c, unsigned cpl, unsigned ist, unsigned ext, struct x86_stack *st);
/* Writes the frame below st->sp and lowers it.  Everything is checked before the first byte is written. */
int x86_frame_store(struct x86_vcpu *c, struct x86_stack *st, const struct x86_frame *f);
/* RSP := st->sp, as wide as the stack. */
void x86_stack_commit(struct x86_vcpu *c, const struct x86_stack *st);
/* The nth item of `size` bytes on the current stack, not popped; `skip` more bytes up. */
int x86_stack_peek(struct x86_vcpu *c, unsigned n, unsigned size, unsigned skip, u64 *v);

/* ---- far.c ---- */
/* The code segment a gate leads to (not null): type, DPL <= CPL, 64-bit in IA-32e mode, present. */
int x86_gate_code(struct x86_vcpu *c, u16 sel, unsigned ext, struct x86_desc *d);
/* Checks of a far return's or IRET's CS against CPL. */
int x86_return_cs(struct x86_vcpu *c, u16 sel, struct x86_desc *d);
/* The SS of a return to `rpl` (null allowed for 64-bit code outside ring 3). */
int x86_return_ss(struct x86_vcpu *c, u16 sel, unsigned rpl, bool target64, struct x86_seg *ss);
/* Data segments the outer ring may not keep become null (SDM Vol. 3A 5.8.6). */
void x86_null_data_segs(struct x86_vcpu *c, unsigned cpl);

/* ---- event.c, gate.c ---- */
struct x86_event {
  u8 kind; /* enum x86_event_kind */
  u8 vector;
  bool has_error;
  u8 ext; /* EXT bit of error codes of faults during the delivery */
  u32 error;
  u64 ret;   /* return address to push */
  u64 flags; /* RFLAGS image to push */
};
int x86_gate_deliver(struct x86_vcpu *c, const struct x86_event *e);

/* ---- fast64.c: false: not one of the plain cases, and nothing has changed ---- */
/* Delivers through a gate of a 64-bit kernel. */
bool x86_gate64(struct x86_vcpu *c, const struct x86_event *e);
/* IRETQ in 64-bit mode to 64-bit code: what it pops (RIP, CS, RFLAGS, RSP, SS), and the segments; all that they have to be checked for. */
bool x86_iret64(struct x86_vcpu *c, u64 v[5], struct x86_seg *cs, struct x86_seg *ss);

/* ---- task.c ---- */
enum task_reason { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE /* interrupt or exception */ };
/* Switches to the TSS `sel` (checks of 7.3 from the descriptor on).  X86_OK: switched.  X86_FAULT before the commit: nothing
 * changed; after it: the fault is the new task's, and RIP already its own (prepared for the return through the instruction's
 * handler). */
int x86_task_switch(struct x86_vcpu *c, u16 sel, enum task_reason reason, u64 next, u64 flags, unsigned ext);
/* Task gate: to its TSS. */
int x86_task_gate(struct x86_vcpu *c, const struct x86_desc *gate, enum task_reason reason, u64 next, u64 flags, unsigned ext);

/* ---- debug.c: bits of pending_dbg that are not DR6's ---- */
#define DBG_ARMED_TF (1ull << 63) /* RFLAGS.TF was set when the running instruction began */
#define DBG_KEEP_RF  (1ull << 62) /* the running instruction loads RF */
#define DBG_MOV_SS   (1ull << 61) /* the interrupt shadow is MOV SS's */
#define DR6_TRAPS    0xe00full    /* B0-B3, BD, BS, BT */
#define DR6_BD       (1ull << 13)
#define DR6_BS       (1ull << 14)
#define DR6_BT       (1ull << 15)
/* The running instruction has replaced TF: what counts for its trap is the new value (SYSCALL, SYSRET).  stepping: it runs in
 * single mode. */
void x86_debug_new_tf(struct x86_vcpu *c, bool stepping);
/* Fills kvm_run for KVM_EXIT_DEBUG. */
int x86_debug_exit(struct x86_vcpu *c, unsigned vector, u64 ip, u64 dr6);

/* ---- mode.c ---- */
/* Sets REQ_EVENT when something waits for an interrupt window or the end of NMI blocking. */
void x86_window_opened(struct x86_vcpu *c);
/* The whole of RFLAGS and the mode after a transfer: bit 1 set, reactions of x86_set_rflags(). */
void x86_commit_flags(struct x86_vcpu *c, u64 flags);

/* ---- smm.c ---- */
void x86_smi_enter(struct x86_vcpu *c);

#endif
