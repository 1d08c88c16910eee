/* A 16550A serial port (National Semiconductor PC16550D data sheet, June 1995; section numbers below are its).
 *
 * The line is infinitely fast: a character is sent as soon as it is written, unless the host does not take it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/backend/console.h"
#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

enum { FIFO_SIZE = 16, POLLS_BEFORE_INPUT = 16 };

/* Registers by offset; 0 and 1 are the divisor latch while LCR.DLAB is set. */
enum { RBR_THR = 0, IER = 1, IIR_FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };
enum { IER_RDA = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_THRE = 2, IIR_RDA = 4, IIR_LINE = 6, IIR_TIMEOUT = 0xc, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10 };
enum { LSR_DR = 1, LSR_OE = 2, LSR_THRE = 0x20, LSR_TEMT = 0x40 };
enum { MSR_DELTA = 0xf, MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

/* All fields are guarded by vmm->lock. */
struct uart {
  struct vmm *vmm;
  struct console *con;
  unsigned gsi;
  uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
  uint16_t divisor;
  uint8_t rx[FIFO_SIZE];
  unsigned rx_head, rx_len;
  uint8_t kept[FIFO_SIZE]; /* input that a clearing of the FIFO met: it comes again */
  unsigned kept_len;
  bool thre_pending; /* the transmitter became empty since the guest last read that from IIR */
  bool line;         /* level of the interrupt line */
  bool held;         /* a character that the host did not take waits in held_byte */
  uint8_t held_byte;
  unsigned lsr_polls; /* LSR reads in a row */
};

static unsigned rx_trigger(const struct uart *u) {
  static const uint8_t levels[] = {1, 4, 8, 14}; /* 8.4 */
  return u->fcr & FCR_ENABLE ? levels[u->fcr >> 6] : 1;
}

static unsigned rx_room(const struct uart *u) {
  return (u->fcr & FCR_ENABLE ? FIFO_SIZE : 1) - u->rx_len;
}

/* The interrupt of highest priority, 8.5 table IV.  Characters below the trigger level time out at once. */
static uint8_t pending(const struct uart *u) {
  if (u->ier & IER_LINE && u->lsr & LSR_OE) return IIR_LINE;
  if (u->ier & IER_RDA && u->rx_len) return u->rx_len >= rx_trigger(u) ? IIR_RDA : IIR_TIMEOUT;
  if (u->ier & IER_THRE && u->thre_pending) return IIR_THRE;
  if (u->ier & IER_MODEM && u->msr & MSR_DELTA) return IIR_MODEM;
  return IIR_NONE;
}

static void set_line(struct uart *u, bool level) {
  if (u->line == level) return;
  u->line = level;
  vmm_irq_set(u->vmm, u->gsi, level);
}

static void update_line(struct uart *u) {
  set_line(u, pending(u) != IIR_NONE);
}

static void push_rx(struct uart *u, uint8_t c) {
  if (rx_room(u) == 0) {
    u->lsr |= LSR_OE;
    return;
  }
  u->rx[(u->rx_head + u->rx_len++) % FIFO_SIZE] = c;
  u->lsr |= LSR_DR;
}

/* The next input bytes: those that were kept, else the console's. */
static size_t take_input(struct uart *u, uint8_t *data, size_t len) {
  if (u->kept_len == 0) return console_read(u->con, data, len);
  size_t n = len < u->kept_len ? len : u->kept_len;
  memcpy(data, u->kept, n);
  u->kept_len -= (unsigned)n;
  memmove(u->kept, u->kept + n, u->kept_len);
  return n;
}

/* Moves input to the receiver once the guest listens: it takes interrupts, or polls LSR. */
static void pull_input(struct uart *u) {
  uint8_t data[FIFO_SIZE];
  bool listens = u->ier & IER_RDA || u->lsr_polls >= POLLS_BEFORE_INPUT;
  unsigned room = rx_room(u);
  if (!listens || room == 0 || u->mcr & MCR_LOOP) return;
  size_t n = take_input(u, data, room);
  for (size_t i = 0; i < n; i++) push_rx(u, data[i]);
}

/* Empties the receiver.  Drivers clear the FIFOs while they set the port up, and what was typed or piped in before would be lost;
 * to the guest it looks as if it had not arrived yet.  FIFO and kept bytes together never exceed a FIFO: the console is read only
 * when none are kept. */
static void clear_rx(struct uart *u) {
  if (!(u->mcr & MCR_LOOP)) {
    memmove(u->kept + u->rx_len, u->kept, u->kept_len);
    for (unsigned i = 0; i < u->rx_len; i++) u->kept[i] = u->rx[(u->rx_head + i) % FIFO_SIZE];
    u->kept_len += u->rx_len;
  }
  u->rx_head = u->rx_len = 0;
  u->lsr &= (uint8_t)~LSR_DR;
}

/* The transmitter is empty again: an edge for an edge-triggered pin even where the line was still high. */
static void transmitted(struct uart *u) {
  u->lsr |= LSR_THRE | LSR_TEMT;
  u->thre_pending = false;
  update_line(u);
  u->thre_pending = true;
  update_line(u);
}

static void write_thr(struct uart *u, uint8_t c) {
  if (u->mcr & MCR_LOOP) {
    push_rx(u, c);
  } else if (u->held || console_write(u->con, &c, 1) == 0) {
    u->held = true;
    u->held_byte = c;
    u->lsr &= (uint8_t) ~(LSR_THRE | LSR_TEMT);
    u->thre_pending = false;
    update_line(u);
    return;
  }
  transmitted(u);
}

/* 8.8: in loopback mode the modem control outputs are the status inputs. */
static uint8_t modem_lines(const struct uart *u) {
  if (!(u->mcr & MCR_LOOP)) return MSR_CTS | MSR_DSR | MSR_DCD;
  return (u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) | (u->mcr & MCR_OUT1 ? MSR_RI : 0) |
         (u->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void update_modem(struct uart *u) {
  uint8_t old = u->msr & 0xf0, now = modem_lines(u);
  uint8_t changed = (old ^ now) >> 4 & 0xb;       /* CTS, DSR, DCD: any change */
  uint8_t ring_end = old & ~now & MSR_RI ? 4 : 0; /* RI: its trailing edge */
  u->msr = now | (u->msr & MSR_DELTA) | changed | ring_end;
}

static void write_ier(struct uart *u, uint8_t value) {
  uint8_t enabled = value & ~u->ier;
  u->ier = value & 0xf;
  if (enabled & IER_THRE && u->lsr & LSR_THRE) u->thre_pending = true; /* 8.6: enabling it with an empty THR interrupts */
  pull_input(u);
}

static void write_fcr(struct uart *u, uint8_t value) {
  if (((value ^ u->fcr) & FCR_ENABLE) || value & FCR_CLEAR_RX) clear_rx(u); /* 8.4: changing the mode clears the FIFOs */
  u->fcr = value & (0xc0 | FCR_ENABLE);
  pull_input(u);
}

static void uart_write_byte(struct uart *u, unsigned reg, uint8_t value) {
  bool dlab = u->lcr & LCR_DLAB;
  if (reg != LSR) u->lsr_polls = 0;
  switch (reg) {
  case RBR_THR:
    if (!dlab) {
      write_thr(u, value);
      return;
    }
    u->divisor = (uint16_t)((u->divisor & 0xff00) | value);
    return;
  case IER:
    if (dlab)
      u->divisor = (uint16_t)((u->divisor & 0xff) | value << 8);
    else
      write_ier(u, value);
    break;
  case IIR_FCR:
    write_fcr(u, value);
    break;
  case LCR:
    u->lcr = value;
    break;
  case MCR:
    u->mcr = value & 0x1f;
    update_modem(u);
    pull_input(u);
    break;
  case SCR:
    u->scr = value;
    break;
  default:
    break; /* LSR and MSR are for the factory (8.6 note) */
  }
  update_line(u);
}

static uint8_t read_rbr(struct uart *u) {
  if (u->rx_len == 0) return 0;
  uint8_t c = u->rx[u->rx_head];
  u->rx_head = (u->rx_head + 1) % FIFO_SIZE;
  if (--u->rx_len == 0) {
    u->lsr &= (uint8_t)~LSR_DR;
    pull_input(u);
  }
  update_line(u);
  return c;
}

static uint8_t read_iir(struct uart *u) {
  uint8_t id = pending(u);
  if (id == IIR_THRE) { /* 8.5: reading it as the source clears it */
    u->thre_pending = false;
    update_line(u);
  }
  return id | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct uart *u) {
  if (!(u->lsr & LSR_DR) && u->lsr_polls < POLLS_BEFORE_INPUT) u->lsr_polls++;
  if (u->lsr_polls == POLLS_BEFORE_INPUT) pull_input(u);
  uint8_t value = u->lsr;
  u->lsr &= (uint8_t)~LSR_OE;
  update_line(u);
  return value;
}

static uint8_t read_msr(struct uart *u) {
  uint8_t value = u->msr;
  u->msr &= 0xf0;
  update_line(u);
  return value;
}

static uint8_t uart_read_byte(struct uart *u, unsigned reg) {
  bool dlab = u->lcr & LCR_DLAB;
  switch (reg) {
  case RBR_THR:
    return dlab ? (uint8_t)u->divisor : read_rbr(u);
  case IER:
    return dlab ? (uint8_t)(u->divisor >> 8) : u->ier;
  case IIR_FCR:
    return read_iir(u);
  case LCR:
    return u->lcr;
  case MCR:
    return u->mcr;
  case LSR:
    return read_lsr(u);
  case MSR:
    return read_msr(u);
  default:
    return u->scr;
  }
}

static void uart_read(void *dev, uint64_t addr, void *data, unsigned len) {
  for (unsigned i = 0; i < len; i++) ((uint8_t *)data)[i] = uart_read_byte(dev, (unsigned)addr + i);
}

static void uart_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  for (unsigned i = 0; i < len; i++) uart_write_byte(dev, (unsigned)addr + i, ((const uint8_t *)data)[i]);
}

static void uart_on_input(void *dev) {
  pull_input(dev);
  update_line(dev);
}

static void uart_on_room(void *dev) {
  struct uart *u = dev;
  if (!u->held || !console_write(u->con, &u->held_byte, 1)) return;
  u->held = false;
  transmitted(u);
}

/* 8.1 table II: the state after master reset. */
static void uart_reset(void *dev) {
  struct uart *u = dev;
  set_line(u, false);
  u->ier = u->fcr = u->lcr = u->mcr = u->scr = 0;
  u->lsr = LSR_THRE | LSR_TEMT;
  u->msr = modem_lines(u);
  u->divisor = 12; /* 9600 baud, as firmware leaves it */
  u->rx_head = u->rx_len = u->kept_len = u->lsr_polls = 0;
  u->thre_pending = u->held = false;
}

int uart_create(struct vmm *vmm, uint16_t base, unsigned gsi, struct console *con) {
  static const struct vmm_range_ops ops = {uart_read, uart_write};
  struct uart *u = calloc(1, sizeof(*u));
  if (!u) return -ENOMEM;
  u->vmm = vmm;
  u->con = con;
  u->gsi = gsi;
  uart_reset(u);
  int r = vmm_on_destroy(vmm, free, u);
  if (r) {
    free(u);
    return r;
  }
  console_attach(con, uart_on_input, uart_on_room, u);
  r = vmm_on_reset(vmm, uart_reset, u);
  return r ? r : vmm_pio_add(vmm, base, 8, &ops, u);
}
