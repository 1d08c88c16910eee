/* The programs that run in lockstep.  They use no global variables that change, no C library, and report values that do not
 * depend on addresses. */
#include <stddef.h>
#include "lockstep.h"

static void report(u16 port, u32 value) {
  __asm__ volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

static void checkpoint(struct work *w, u64 value) {
  if (w->n < CHECKPOINTS) w->value[w->n] = value;
  w->n++;
  if (!w->native) report(CHECK_PORT, (u32)value);
}

void program_start(struct work *w, void (*run)(struct work *w)) {
  run(w);
  report(END_PORT, 0);
  for (;;) __asm__ volatile("hlt");
}

static u64 next(u64 *s) {
  *s ^= *s << 13;
  *s ^= *s >> 7;
  *s ^= *s << 17;
  return *s;
}

static u64 hash(const void *data, u64 size) {
  const u8 *p = data;
  u64 h = 0xcbf29ce484222325ull;
  while (size--) h = (h ^ *p++) * 0x100000001b3ull;
  return h;
}

/* ---- sorting: calls by pointer, recursion, branches nobody can predict ---- */

typedef int compare_fn(u32 a, u32 b);
static int up(u32 a, u32 b) {
  return a < b ? -1 : a > b;
}
static int down(u32 a, u32 b) {
  return a > b ? -1 : a < b;
}
static int by_digits(u32 a, u32 b) {
  return (int)(a % 1000) - (int)(b % 1000);
}

static void quicksort(u32 *v, long n, compare_fn *cmp) {
  while (n > 8) {
    u32 pivot = v[n / 2];
    long i = 0, j = n - 1;
    while (i <= j) {
      while (cmp(v[i], pivot) < 0) i++;
      while (cmp(v[j], pivot) > 0) j--;
      if (i > j) break;
      u32 t = v[i];
      v[i++] = v[j];
      v[j--] = t;
    }
    quicksort(v, j + 1, cmp);
    v += i;
    n -= i;
  }
  for (long i = 1; i < n; i++)
    for (long j = i; j > 0 && cmp(v[j - 1], v[j]) > 0; j--) {
      u32 t = v[j];
      v[j] = v[j - 1];
      v[j - 1] = t;
    }
}

static void sorting(struct work *w) {
  static compare_fn *const order[] = {up, down, by_digits};
  u32 *v = (u32 *)(void *)w->heap;
  u64 s = 1;
  for (unsigned round = 0; round < 12; round++) {
    unsigned n = 300 + 37 * round;
    for (unsigned k = 0; k < n; k++) v[k] = (u32)next(&s) >> (round % 5 * 4);
    compare_fn *volatile cmp = order[round % 3];
    quicksort(v, n, cmp);
    checkpoint(w, cmp == by_digits ? v[0] % 1000 + v[n - 1] % 1000 : hash(v, n * 4));
  }
}

/* ---- SHA-256, CRC: rotations, tables, bytes in both orders ---- */

static u32 ror(u32 x, unsigned n) {
  return x >> n | x << (32 - n);
}

/* The constants are the fraction bits of cube roots of primes (FIPS 180-4); any others would do here. */
static void sha_block(u32 h[8], const u8 *p) {
  u32 m[64], a[8];
  for (unsigned n = 0; n < 16; n++) m[n] = (u32)p[4 * n] << 24 | (u32)p[4 * n + 1] << 16 | (u32)p[4 * n + 2] << 8 | p[4 * n + 3];
  for (unsigned n = 16; n < 64; n++)
    m[n] = m[n - 16] + (ror(m[n - 15], 7) ^ ror(m[n - 15], 18) ^ m[n - 15] >> 3) + m[n - 7] +
           (ror(m[n - 2], 17) ^ ror(m[n - 2], 19) ^ m[n - 2] >> 10);
  for (unsigned n = 0; n < 8; n++) a[n] = h[n];
  for (unsigned n = 0; n < 64; n++) {
    u32 k = 0x428a2f98u * (n + 1),
        t1 = a[7] + (ror(a[4], 6) ^ ror(a[4], 11) ^ ror(a[4], 25)) + ((a[4] & a[5]) ^ (~a[4] & a[6])) + k + m[n];
    u32 t2 = (ror(a[0], 2) ^ ror(a[0], 13) ^ ror(a[0], 22)) + ((a[0] & a[1]) ^ (a[0] & a[2]) ^ (a[1] & a[2]));
    for (unsigned i = 7; i > 0; i--) a[i] = a[i - 1];
    a[4] += t1;
    a[0] = t1 + t2;
  }
  for (unsigned n = 0; n < 8; n++) h[n] += a[n];
}

static void digests(struct work *w) {
  u32 h[8] = {1, 2, 3, 4, 5, 6, 7, 8}, *table = (u32 *)(void *)w->heap;
  u64 s = 2;
  u8 *data = w->heap + 4096;
  for (u32 n = 0; n < 256; n++) {
    u32 c = n;
    for (unsigned k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
    table[n] = c;
  }
  for (unsigned round = 0; round < 16; round++) {
    u32 crc = ~0u;
    for (unsigned n = 0; n < 512; n++) data[n] = (u8)next(&s);
    for (unsigned n = 0; n < 512; n += 64) sha_block(h, data + n);
    for (unsigned n = 0; n < 512; n++) crc = table[(crc ^ data[n]) & 255] ^ crc >> 8;
    checkpoint(w, hash(h, sizeof(h)) ^ crc);
  }
}

/* ---- a compressor and its inverse: matches found by a hash table, copies that overlap ---- */

static u32 get32(const u8 *p) {
  return p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24;
}

static u64 pack(const u8 *in, u64 n, u8 *out, u16 *last) {
  u64 at = 0, to = 0;
  for (unsigned k = 0; k < 4096; k++) last[k] = 0;
  while (at < n) {
    u64 length = 0, from = 0;
    if (at + 4 < n) {
      u16 *slot = &last[get32(in + at) * 2654435761u >> 20];
      from = *slot;
      *slot = (u16)(at + 1);
      if (from--)
        while (length < 60 && at + length < n && in[from + length] == in[at + length]) length++;
    }
    if (length >= 4) {
      out[to++] = (u8)(0x80 | length);
      out[to++] = (u8)(at - from);
      out[to++] = (u8)((at - from) >> 8);
      at += length;
    } else {
      out[to++] = in[at++] & 0x7f;
    }
  }
  return to;
}

static u64 unpack(const u8 *in, u64 n, u8 *out) {
  u64 to = 0;
  for (u64 at = 0; at < n;) {
    if (!(in[at] & 0x80)) {
      out[to++] = in[at++];
      continue;
    }
    u64 length = in[at] & 0x7f, back = in[at + 1] | (u64)in[at + 2] << 8;
    for (u64 k = 0; k < length; k++, to++) out[to] = out[to - back];
    at += 3;
  }
  return to;
}

static void compression(struct work *w) {
  u8 *text = w->heap, *packed = text + 0x10000, *again = text + 0x20000;
  u64 s = 3;
  for (unsigned round = 0; round < 6; round++) {
    u64 n = 3000 + 777 * round;
    for (u64 k = 0; k < n; k++) text[k] = k > 100 && next(&s) % 4 ? text[k - 1 - next(&s) % 3 * 17] : (u8)(next(&s) & 0x3f);
    u64 size = pack(text, n, packed, (u16 *)(void *)(text + 0x30000)), back = unpack(packed, size, again);
    u64 wrong = back != n;
    for (u64 k = 0; k < n; k++) wrong += text[k] != again[k];
    checkpoint(w, hash(packed, size) ^ wrong << 60);
  }
}

/* ---- numbers of many digits: wide multiplications, divisions, carries ---- */

static void bignum(struct work *w) {
  u64 *a = (u64 *)(void *)w->heap, *b = a + 64, *c = b + 64, s = 4;
  for (unsigned round = 0; round < 24; round++) {
    for (unsigned n = 0; n < 32; n++) a[n] = next(&s), b[n] = next(&s) >> (round % 3 * 20);
    for (unsigned n = 0; n < 64; n++) c[n] = 0;
    for (unsigned i = 0; i < 32; i++) {
      u64 carry = 0;
      for (unsigned j = 0; j < 32; j++) {
        unsigned __int128 t = (unsigned __int128)a[i] * b[j] + c[i + j] + carry;
        c[i + j] = (u64)t;
        carry = (u64)(t >> 64);
      }
      c[i + 32] = carry;
    }
    u64 d = next(&s) | 1, rest = 0, low = 0;
    for (unsigned n = 64; n-- > 0;) {
      u64 q;
      __asm__("divq %4" : "=a"(q), "=d"(rest) : "a"(c[n]), "d"(rest), "r"(d));
      low ^= q;
    }
    u64 sum;
    __asm__("movq (%1), %0\n\taddq (%2), %0\n\tmovq 8(%1), %0\n\tadcq 8(%2), %0\n\tmovq 16(%1), %0\n\tsbbq 16(%2), %0\n\trclq "
            "$3, %0\n\trcrq $7, %0"
            : "=&r"(sum)
            : "r"(a), "r"(b)
            : "cc", "memory");
    checkpoint(w, hash(c, 512) ^ rest ^ low ^ sum);
  }
}

/* ---- floating point: SSE, x87, conversions ---- */

static double root(double x) {
  double r = x;
  for (unsigned n = 0; n < 30; n++) r = 0.5 * (r + x / r);
  return r;
}

static void floating(struct work *w) {
  double body[5][6], energy = 0;
  u64 s = 5;
  for (unsigned n = 0; n < 5; n++)
    for (unsigned k = 0; k < 6; k++) body[n][k] = (double)(long)(next(&s) % 2000) / 1000.0 - 1.0;
  for (unsigned step = 0; step < 20; step++) {
    for (unsigned i = 0; i < 5; i++)
      for (unsigned j = 0; j < 5; j++) {
        if (i == j) continue;
        double d2 = 0.01;
        for (unsigned k = 0; k < 3; k++) d2 += (body[i][k] - body[j][k]) * (body[i][k] - body[j][k]);
        double f = 0.001 / (d2 * root(d2));
        for (unsigned k = 0; k < 3; k++) body[i][3 + k] -= (body[i][k] - body[j][k]) * f;
        energy += f;
      }
    for (unsigned i = 0; i < 5; i++)
      for (unsigned k = 0; k < 3; k++) body[i][k] += 0.01 * body[i][3 + k];
    long double series = 0, term = 1;
    for (unsigned k = 1; k < 25; k++) series += term, term = term * (long double)body[step % 5][0] / k;
    float small = (float)series;
    int whole = (int)(energy * 1000), nearest;
    __asm__("cvtss2si %1, %0" : "=r"(nearest) : "x"(small * 100));
    checkpoint(w, hash(body, sizeof(body)) ^ (u64)whole << 32 ^ (u32)nearest ^ (u64)(long)(series * 1000000));
  }
}

/* ---- strings, and accesses of every size across every boundary ---- */

static void copy(void *to, const void *from, u64 n) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
}
static void fill(void *to, u8 v, u64 n) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
}
static u64 find(const void *p, u8 v, u64 n) {
  __asm__ volatile("repne scasb" : "+D"(p), "+c"(n) : "a"(v) : "memory", "cc");
  return n;
}
static u64 agree(const void *p, const void *q, u64 n) {
  __asm__ volatile("repe cmpsb" : "+D"(p), "+S"(q), "+c"(n)::"memory", "cc");
  return n;
}
static void backwards(u8 *to, const u8 *from, u64 n) {
  to += n - 1, from += n - 1;
  __asm__ volatile("std\n\trep movsb\n\tcld" : "+D"(to), "+S"(from), "+c"(n)::"memory");
}

static void strings(struct work *w) {
  u64 s = 6;
  for (unsigned n = 0; n < 0x8000; n++) w->heap[n] = (u8)next(&s);
  for (unsigned round = 0; round < 60; round++) {
    u8 *p = w->heap + next(&s) % 0x6000, *q = w->heap + next(&s) % 0x6000;
    u64 n = next(&s) % (round < 40 ? 70 : 4000), found = 0;
    switch (round % 6) {
    case 0:
      copy(p, q, n);
      break;
    case 1:
      fill(p, (u8)round, n);
      break;
    case 2:
      found = find(p, (u8)round, n);
      break;
    case 3:
      copy(p, q, n), found = agree(p, q, n);
      break;
    case 4:
      backwards(p, q, n + 1);
      break;
    default:
      for (u64 k = 0; k < n; k++) {
        u64 x;
        u32 y;
        u16 z;
        __asm__ volatile("movq (%3), %0\n\tmovl 3(%3), %1\n\tmovw 5(%3), %2\n\taddq %0, 1(%4)\n\tsubl %1, 9(%4)\n\txorw %2, "
                         "13(%4)\n\tincb 15(%4)"
                         : "=&r"(x), "=&r"(y), "=&r"(z)
                         : "r"(p + k), "r"(q + k)
                         : "memory", "cc");
        found += x ^ y ^ z;
      }
    }
    checkpoint(w, hash(w->heap, 0x8000) ^ found);
  }
}

/* ---- a machine in the machine: jumps through tables ---- */

static u64 interpret(const u8 *code, u64 n, u64 *stack) {
  u64 top = 0, steps = 0;
  for (u64 at = 0; at < n && steps < 5000; at++, steps++) {
    u64 *t = &stack[top & 63];
    switch (code[at] & 15) {
    case 0:
      stack[++top & 63] = code[at] >> 4;
      break;
    case 1:
      stack[(top - 1) & 63] += *t;
      top--;
      break;
    case 2:
      stack[(top - 1) & 63] -= *t;
      top--;
      break;
    case 3:
      stack[(top - 1) & 63] *= *t | 1;
      top--;
      break;
    case 4:
      *t ^= *t << 13;
      break;
    case 5:
      *t ^= *t >> 9;
      break;
    case 6:
      stack[(top + 1) & 63] = *t;
      top++;
      break;
    case 7:
      if (*t & 1) at += code[at] >> 6;
      break;
    case 8:
      *t = *t << 7 | *t >> 57;
      break;
    case 9:
      if (*t % 5 == 3 && at > 20) {
        *t += 7;
        at -= 20;
      }
      break;
    case 10:
      *t = ~*t;
      break;
    case 11:
      *t /= (code[at] >> 4) + 1u;
      break;
    case 12:
      *t = (u64)((long)*t >> 3);
      break;
    case 13:
      *t = __builtin_bswap64(*t);
      break;
    case 14:
      *t += steps;
      break;
    default:
      top--;
      break;
    }
  }
  return hash(stack, 512) ^ top ^ steps;
}

static void bytecode(struct work *w) {
  u64 s = 7, *stack = (u64 *)(void *)(w->heap + 0x2000);
  for (unsigned n = 0; n < 64; n++) stack[n] = n;
  for (unsigned round = 0; round < 20; round++) {
    for (unsigned n = 0; n < 1500; n++) w->heap[n] = (u8)next(&s);
    checkpoint(w, interpret(w->heap, 1500, stack));
  }
}

/* ---- recursion and a tree ---- */

static u32 ackermann(u32 m, u32 n) {
  return !m ? n + 1 : !n ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}

struct node {
  u32 left, right, key, count; /* indices: no addresses in memory */
};
static u32 insert(struct node *t, u32 at, u32 key, u32 *used) {
  if (!at) {
    at = ++*used;
    t[at] = (struct node){.key = key, .count = 1};
  } else if (key == t[at].key) {
    t[at].count++;
  } else if (key < t[at].key) {
    t[at].left = insert(t, t[at].left, key, used);
  } else {
    t[at].right = insert(t, t[at].right, key, used);
  }
  return at;
}
static u64 walk(const struct node *t, u32 at, u64 h) {
  return at ? walk(t, t[at].right, (walk(t, t[at].left, h) ^ t[at].key) * 31 + t[at].count) : h;
}

static void recursion(struct work *w) {
  struct node *t = (struct node *)(void *)w->heap;
  u64 s = 8;
  u32 root_at = 0, used = 0;
  for (u32 n = 1; n < 5; n++) checkpoint(w, ackermann(2, 6 * n));
  for (unsigned round = 0; round < 20; round++) {
    for (unsigned n = 0; n < 60; n++) root_at = insert(t, root_at, (u32)(next(&s) % 3000), &used);
    checkpoint(w, walk(t, root_at, used));
  }
}

/* ---- flags: every condition, by every way to read it ---- */

#define TAKE(cc)                                                                                                                 \
  "set" cc " %b2\n\taddq %2, %0\n\trolq $5, %0\n\tcmov" cc " %1, %2\n\txorq %2, %0\n\tmovl $0, %k2\n\tj" cc                      \
  " 1f\n\tleaq 13(%0), %0\n1:\n\t"
#define EACH(op)                                                                                                                 \
  __asm__("xorl %k2, %k2\n\t" op TAKE("o") op TAKE("b") op TAKE("z") op TAKE("be") op TAKE("s") op TAKE("p") op TAKE("l")        \
              op TAKE("le") op TAKE("no") op TAKE("ae") op TAKE("nz") op TAKE("a") op TAKE("ns") op TAKE("np") op TAKE("ge")     \
                  op TAKE("g")                                                                                                   \
          : "+r"(h), "+r"(a), "=&q"(t), "+c"(c), "+r"(b)                                                                         \
          :                                                                                                                      \
          : "cc")

static void conditions(struct work *w) {
  u64 s = 9, h = 0, a, b, c, t;
  for (unsigned round = 0; round < 200; round++) {
    a = next(&s) >> (round % 4 * 16), b = next(&s) >> (round % 3 * 21), c = next(&s) & 63;
    EACH("addq %4, %1\n\t");
    EACH("subl %k4, %k1\n\t");
    EACH("cmpw %w4, %w1\n\t");
    EACH("testb %b2, %b2\n\tadcq %4, %1\n\t");
    EACH("sbbq %4, %1\n\t");
    EACH("shlq %%cl, %1\n\t");
    EACH("sarl $3, %k1\n\t");
    EACH("incq %1\n\tdecb %b2\n\tmovl $0, %k2\n\t");
    EACH("negq %1\n\t");
    EACH("shldq %%cl, %4, %1\n\t");
    EACH("imulq %4, %1\n\t");
    EACH("btq %3, %1\n\t");
    EACH("rclq %%cl, %1\n\t");
    EACH("xorq %4, %1\n\tpushfq\n\tandq $-2, %1\n\tpopfq\n\t");
    if (round % 10 == 9) checkpoint(w, h);
  }
}

/* ---- vectors ---- */

__attribute__((target("avx2,fma"), optimize("O3"))) static void vector_loops(struct work *w, float *x, float *y, u32 *v, u64 *s) {
  for (unsigned n = 0; n < 512; n++) x[n] = (float)(int)(next(s) & 0xffff) / 77.0f, v[n] = (u32)next(s);
  for (unsigned n = 0; n < 512; n++) y[n] = x[n] * x[511 - n] + y[n] * 0.5f;
  for (unsigned n = 0; n < 511; n++) v[n] = (v[n] >> 3) + (v[n + 1] ^ 0x5a5a5a5au) * 3 + (v[n] > v[n + 1] ? 1 : 7);
  u8 *bytes = (u8 *)v;
  u32 sum = 0;
  for (unsigned n = 0; n < 2048; n++) sum += bytes[n] > 100 ? bytes[n] : 0;
  checkpoint(w, hash(y, 2048) ^ hash(v, 2048) ^ sum);
}

static void vectors(struct work *w) {
  float *x = (float *)(void *)w->heap, *y = x + 512;
  u64 s = 10;
  for (unsigned n = 0; n < 512; n++) y[n] = 0;
  for (unsigned round = 0; round < 12; round++) vector_loops(w, x, y, (u32 *)(void *)(y + 512), &s);
}

/* ---- code that is written ---- */

static void put(u8 *p, const char *bytes, unsigned n) {
  while (n--) *p++ = (u8)*bytes++;
}

static void written_code(struct work *w) {
  static const u16 places[] = {0x100, 0xff8, 0x40, 0xffc}; /* some across a page's end */
  u64 h = 0;
  for (u32 round = 0; round < 400; round++) {
    u8 *p = w->heap + places[round % 4];
    u64 (*volatile call)(u64) = (u64(*)(u64))(void *)p;
    put(p, "\x48\x8d\x47\x05\xb9\x00\x00\x00\x00\x48\x01\xc8\xc3", 13); /* lea 5(%rdi),%rax; mov imm,%ecx; add %rcx,%rax; ret */
    for (unsigned k = 0; k < 40 + round % 3; k++) h += call(round);
    for (unsigned change = 1; change < 4; change++) {
      *(volatile u32 *)(void *)(p + 5) = round * change;
      for (unsigned k = 0; k < 10 * change; k++) h = h * 3 + call(h & 0xff);
    }
    /* An instruction that writes the one behind it, mostly with what it has: movb 5(%rdi); mov imm,%eax; ret. */
    put(p + 64, "\xc6\x47\x05\x07\xb8\x00\x00\x00\x00\xc3", 10);
    p[64 + 3] = (u8)(round / 8);
    u64 (*volatile self)(u8 *) = (u64(*)(u8 *))(void *)(p + 64);
    for (unsigned k = 0; k < 18; k++) h = h * 3 + self(k & 8 ? p + 64 : p + 128);
    if (round % 20 == 19) checkpoint(w, h);
  }
}

/* ---- page faults, divisions by zero, undefined instructions ---- */

static u64 *walk_tables(u64 lin) {
  u64 table;
  __asm__ volatile("movq %%cr3, %0" : "=r"(table));
  for (unsigned shift = 39; shift > 12; shift -= 9) table = ((u64 *)(table & ~0xfffull))[lin >> shift & 511];
  return &((u64 *)(table & ~0xfffull))[lin >> 12 & 511];
}

void map_lazily(u64 lin); /* called by traps.S */
__attribute__((target("general-regs-only"))) void map_lazily(u64 lin) {
  struct work *w = (struct work *)WORK_AT;
  u64 n = (lin - LAZY_AT) >> 12;
  if (n >= LAZY_PAGES) report(0x82, (u32)lin);
  w->faults++;
  *walk_tables(lin) =
      (WORK_AT + offsetof(struct work, heap) + HEAP_SIZE - (n + 1) * 4096) | 7; /* the other way round: neighbours are none */
}

static void forget_pages(u64 s) {
  for (unsigned n = 0; n < LAZY_PAGES; n++) {
    if (!(s >> n & 1)) continue;
    *walk_tables(LAZY_AT + n * 4096) = 0;
    __asm__ volatile("invlpg (%0)" : : "r"(LAZY_AT + n * 4096) : "memory");
  }
}

static void faults(struct work *w) {
  u8 *lazy = (u8 *)LAZY_AT;
  u64 s = 11, h = 0;
  for (unsigned round = 0; round < 60; round++) {
    forget_pages(next(&s));
    for (unsigned n = 0; n < 40; n++) {
      u64 at = next(&s) % (LAZY_PAGES * 4096 - 64);
      __asm__ volatile("addq %1, (%0)\n\tadcq 8(%0), %2\n\tmovups (%0), %%xmm0\n\tpaddd %%xmm0, %%xmm0\n\tmovups %%xmm0, "
                       "16(%0)\n\tpushq 24(%0)\n\tpopq 32(%0)"
                       :
                       : "r"(lazy + at), "r"(s), "r"(h)
                       : "memory", "xmm0", "cc");
      if (n % 5 == 0)
        copy(lazy + next(&s) % (LAZY_PAGES * 4096 - 5000), lazy + next(&s) % (LAZY_PAGES * 4096 - 5000), next(&s) % 4500);
      u32 q = (u32)s, r = 0, zero = (u32)(next(&s) & 3);
      __asm__ volatile("divl %%ecx" : "+a"(q), "+d"(r) : "c"(zero) : "cc");
      u64 counted = q;
      __asm__ volatile("ud2" : "+a"(counted));
      h = h * 7 + counted + r;
    }
    checkpoint(w, h ^ w->faults << 40);
  }
}

/* ---- user mode ---- */

static u64 ask(u64 a, u64 b) {
  __asm__ volatile("int $0x80" : "+a"(a) : "D"(b) : "memory");
  return a;
}

struct errand {
  u8 *heap;
  u64 seed, answer;
};
static void in_user_mode(void *arg) {
  struct errand *e = arg;
  u64 s = e->seed, h = 0;
  for (unsigned n = 0; n < 200; n++) {
    u64 at = next(&s) % 0x4000;
    e->heap[at] += (u8)s;
    h += e->heap[at] + (n % 8 ? 0 : ask(s | 1, h));
    ((u8 *)LAZY_AT)[next(&s) % (LAZY_PAGES * 4096)]++;
  }
  e->answer = h;
  user_return(h);
}

static void user_mode(struct work *w) {
  struct errand *e = (struct errand *)(void *)(w->heap + 0x8000);
  u64 s = 12;
  for (unsigned round = 0; round < 40; round++) {
    *e = (struct errand){.heap = w->heap, .seed = next(&s)};
    forget_pages(next(&s));
    u64 h = user_call(in_user_mode, e, 0x1eff8);
    checkpoint(w, h ^ hash(w->heap, 0x4000) ^ w->faults << 40 ^ (h != e->answer));
  }
}

const struct program programs[] = {
    {"sorting", sorting},       {"digests", digests}, {"compression", compression},    {"bignum", bignum},
    {"floating", floating},     {"strings", strings}, {"bytecode", bytecode},          {"recursion", recursion},
    {"conditions", conditions}, {"vectors", vectors}, {"written", written_code, true}, {"faults", faults, true},
    {"user", user_mode, true},
};
const unsigned n_programs = sizeof(programs) / sizeof(programs[0]);
