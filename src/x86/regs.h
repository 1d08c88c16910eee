/* Register numbers, flag and control-register bits (Intel SDM Vol. 3A, chapter 2). */
#ifndef X86_REGS_H
#define X86_REGS_H

#include "base/types.h"

enum x86_reg { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15,
  X86_REG_NONE, /* always 0: a missing base or index */
  X86_REG_RIP,  /* the instruction pointer.  While a block runs it is the address of the block's first instruction */
  X86_NREGS };
#define rip regs[X86_REG_RIP]

enum x86_sreg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS };

#define FL_CF   0x1u
#define FL_PF   0x4u
#define FL_AF   0x10u
#define FL_ZF   0x40u
#define FL_SF   0x80u
#define FL_TF   0x100u
#define FL_IF   0x200u
#define FL_DF   0x400u
#define FL_OF   0x800u
#define FL_IOPL 0x3000u
#define FL_NT   0x4000u
#define FL_RF   0x10000u
#define FL_VM   0x20000u
#define FL_AC   0x40000u
#define FL_VIF  0x80000u
#define FL_VIP  0x100000u
#define FL_ID   0x200000u
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_PE 0x1u
#define CR0_MP 0x2u
#define CR0_EM 0x4u
#define CR0_TS 0x8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u

#define CR4_VME        0x1u
#define CR4_PVI        0x2u
#define CR4_TSD        0x4u
#define CR4_DE         0x8u
#define CR4_PSE        0x10u
#define CR4_PAE        0x20u
#define CR4_MCE        0x40u
#define CR4_PGE        0x80u
#define CR4_PCE        0x100u
#define CR4_OSFXSR     0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP       0x800u
#define CR4_LA57       0x1000u
#define CR4_VMXE       0x2000u
#define CR4_FSGSBASE   0x10000u
#define CR4_PCIDE      0x20000u
#define CR4_OSXSAVE    0x40000u
#define CR4_SMEP       0x100000u
#define CR4_SMAP       0x200000u
#define CR4_PKE        0x400000u

#define EFER_SCE   0x1u
#define EFER_LME   0x100u
#define EFER_LMA   0x400u
#define EFER_NX    0x800u
#define EFER_FFXSR 0x4000u

/* Key bits of decoded code: everything decoding depends on (x86_vcpu.mode). */
#define X86_MODE_16     0u
#define X86_MODE_32     1u
#define X86_MODE_64     2u
#define X86_MODE_SIZE   3u  /* mask of the above */
#define X86_MODE_SINGLE 4u  /* one instruction per block: single step, breakpoints, interrupt shadow */
#define X86_MODE_SMM    16u /* code seen through the SMM address space */
#define X86_MODE_REAL   8u  /* CR0.PE = 0 or EFLAGS.VM = 1: instructions that #UD there */

#endif
