/* A boot sector for gdbstub_test.py: every place where a debugger should stop has a name. */
  .code16
  .globl start
start:
  xor %ax, %ax
in_1:
  mov %ax, %ds
in_2:
  mov $0x7000, %cx
in_3:
  mov %ax, %ss /* no trap behind it (SDM Vol. 3B, 17.3.1.1) */
  mov %cx, %sp
in_4:
  mov $0xa000, %bx
in_5:
  mov %bx, %es
in_6:
  movb %al, %es:4 /* nobody's memory: the client answers */
in_7:
  mov %es:8, %al
in_8:
  out %al, $0x80
in_9:
  in $0x80, %al
in_10:
  mov %ds, %ax
in_11:
  mov %ax, %es
in_12:
  mov $start, %si
in_13:
  mov $0x6000, %di
in_14:
  mov $3, %cx
in_15:
  rep movsb /* a trap after each iteration */
in_16:
  call inner
in_17:
  pushf
in_18:
  popf
in_19:
  movw $breakpoint, 3 * 4
  movw %ax, 3 * 4 + 2
  movw %ax, counter
again:
  incw counter
  .globl stop
stop:
  nop
  cmpw $4, counter
  jne again
  int3 /* the guest's own */
  .globl wait
wait:
  jmp written
  nop
written:
  movw $0x1234, watched
after_write:
  nop
  mov watched, %ax
after_read:
  nop
end:
  nop
  jmp end

inner:
  ret
breakpoint:
  incw %cs:traps
  iret
  .balign 2
counter:
  .word 0
traps:
  .word 0
watched:
  .word 0
  .org 510
  .word 0xaa55
