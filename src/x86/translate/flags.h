/* Where the guest's arithmetic flags are while a block is translated.
 *
 * They may be in the host's flags, in memory (c->code.flags, as LAHF and SETO give them), or nowhere but in the operands and the result of the instruction
 * that wrote them, its registers being as it left them: then an instruction of the host's makes them again, where somebody asks, which is seldom.
 */
#ifndef X86_TRANSLATE_FLAGS_H
#define X86_TRANSLATE_FLAGS_H

#include <Zydis/Zydis.h>
#include "x86/insn.h"
#include "x86/translate/emit.h"

struct translation;

/* An instruction whose flags can be made again from registers. */
struct t_producer {
  enum { PRODUCER_NONE, PRODUCER_COMPARE, PRODUCER_TEST, PRODUCER_RESULT, PRODUCER_ADD, PRODUCER_SUB, PRODUCER_NEG } op : 8;
  u8 insn; /* of the block */
  u8 bits;
  u8 dst, src; /* guest registers; src: X86_REG_NONE: imm */
  s32 imm;
};

struct t_flags {
  bool host, saved;
  struct t_producer producer; /* of the current flags */
  enum { FIRST_NONE, FIRST_SAVED, FIRST_READ, FIRST_WRITTEN } first; /* how the block uses the flags it starts with */

  /* Of the instruction at hand. */
  bool overwrites; /* changes registers of the producer */
  bool begin_host; /* before it only the host's flags had them */
  bool lost;       /* its code has changed the host's flags */
  struct t_producer again; /* how its slow path and a fault make the flags again */
};

void t_save_flags(struct translation *t);  /* memory has them afterwards; RAX changes */
void t_store_flags(struct translation *t); /* memory alone has them; RAX changes */
void t_settle_flags(struct translation *t); /* the same, and whatever its slow path or a fault finds in registers */
void t_lose_flags(struct translation *t);  /* what follows changes the host's; RAX changes */
void t_need_flags(struct translation *t);  /* the host's are the guest's; RAX changes */
void t_wrote_flags(struct translation *t); /* the host's instruction has set all of the guest's */
void t_stored_flags(struct translation *t); /* its code has put them into memory */

/* Around each instruction.  The second: how a fault in it finds the flags, for struct x86_code_place. */
void t_flags_begin(struct translation *t);
u8 t_flags_end(struct translation *t);
enum { FLAGS_IN_MEMORY, FLAGS_IN_HOST, FLAGS_AGAIN /* + number of the producer */ };

void t_emit_save_flags(struct emitter *e);
void t_emit_restore_flags(struct emitter *e);
void t_emit_flags_again(struct emitter *e, const struct t_producer *p);

/* op PRODUCER_NONE: cannot be made again. */
struct t_producer t_producer_of(unsigned insn, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops);
/* Its flags, from registers as it left them. */
u64 t_producer_flags(const struct t_producer *p, const u64 *regs);

#endif
