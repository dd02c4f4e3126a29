/**
 * Compares a query with the one-bit codes of many vectors: `and` and the count of bits, with the 128-bit instructions
 * of WebAssembly. 200,000 codes of 256 bits take 2.5 ms of one core; JavaScript has no instruction that counts bits.
 *
 * A query has four bits per dimension, in four planes: plane j has bit j of all of them. For each code the sum over j
 * of 2^j x (bits set both in the code and in plane j) is found: the sum of the query's levels where the code is 1.
 */

/** The part of WebAssembly that is used here; the types of Node 20 lack it. */
declare const WebAssembly: {
  readonly Memory: new (size: { readonly initial: number }) => { readonly buffer: ArrayBuffer };
  readonly Module: new (code: Uint8Array) => object;
  readonly Instance: new (module: object, imports: object) => { readonly exports: Readonly<Record<string, unknown>> };
};

/** Bits of a level of a query. */
export const QUERY_BITS = 4;
/** Bits that one instruction takes; a code is a multiple of it. */
export const CODE_STEP = 128;
/** More would exceed 16 bits of a sum. */
export const MOST_BITS = 4096;

/** Encoded instructions of WebAssembly; https://webassembly.github.io/spec/core/binary/instructions.html */
const I32 = 0x7f;
const V128 = 0x7b;
const EMPTY = 0x40;
const LOOP = 0x03;
const BRANCH_IF = 0x0d;
const END = 0x0b;
const ADD = 0x6a;
const LESS_UNSIGNED = 0x49;
const STORE_16 = 0x3b;
const vector = (operation: number) => [0xfd, ...unsigned(operation)];
const [AND, POPCOUNT, SHIFT_8, ADD_8] = [vector(0x4e), vector(0x62), vector(0x6b), vector(0x6e)];
/** Sums of neighbours: 16 bytes become 8 numbers of 16 bits, and these 4 of 32 bits. */
const [PAIRS_8, PAIRS_16, ADD_16] = [vector(0x7d), vector(0x7f), vector(0x8e)];
const laneOf = (lane: number) => [...vector(0x1b), lane];

/** LEB128, as WebAssembly writes numbers. */
function unsigned(value: number): number[] {
  return value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)];
}
function signed(value: number): number[] {
  const low = value & 127;
  const rest = value >> 7;
  const isLast = (rest === 0 && low < 64) || (rest === -1 && low >= 64);
  return isLast ? [low] : [low | 128, ...signed(rest)];
}
const section = (id: number, content: readonly number[]) => [id, ...unsigned(content.length), ...content];
const list = (items: readonly (readonly number[])[]) => [...unsigned(items.length), ...items.flat()];
const get = (local: number) => [0x20, ...unsigned(local)];
const set = (local: number) => [0x21, ...unsigned(local)];
const tee = (local: number) => [0x22, ...unsigned(local)];
const constant = (value: number) => [0x41, ...signed(value)];
/** Loads 16 bytes from the address on the stack, plus an offset. */
const load = (offset: number) => [...vector(0), 4, ...unsigned(offset)];

/** The function `scan(codes, end, sums, planes)`, all addresses: writes one number of 16 bits for each code. */
function scanCode(vectors: number): number[] {
  const [codes, end, sums, planes] = [0, 1, 2, 3];
  const plane = (j: number, v: number) => 4 + j * vectors + v;
  const row = (v: number) => plane(QUERY_BITS, v);
  const total = row(vectors);
  const each = Array.from({ length: vectors }, (_, v) => v);
  const bits = Array.from({ length: QUERY_BITS }, (_, j) => j);
  /** Bits that are set in both, weighted; a byte holds at most 8 x 15. */
  const weighted = (v: number) =>
    bits.flatMap((j) => [
      ...[...get(row(v)), ...get(plane(j, v)), ...AND, ...POPCOUNT],
      ...(j === 0 ? [] : [...constant(j), ...SHIFT_8, ...ADD_8]),
    ]);
  const lanes = [0, 1, 2, 3].flatMap((lane) => [...get(total), ...laneOf(lane), ...(lane === 0 ? [] : [ADD])]);
  const body = [
    ...bits.flatMap((j) => each.flatMap((v) => [...get(planes), ...load((j * vectors + v) * 16), ...set(plane(j, v))])),
    ...[LOOP, EMPTY],
    ...each.flatMap((v) => [...get(codes), ...load(v * 16), ...set(row(v))]),
    ...each.flatMap((v) => [...weighted(v), ...PAIRS_8, ...(v === 0 ? [] : ADD_16)]),
    ...[...PAIRS_16, ...set(total)],
    ...[...get(sums), ...lanes, STORE_16, 1, 0],
    ...[...get(sums), ...constant(2), ADD, ...set(sums)],
    ...[...get(codes), ...constant(vectors * 16), ADD, ...tee(codes), ...get(end), LESS_UNSIGNED, BRANCH_IF, 0],
    ...[END, END],
  ];
  return [...list([[...unsigned(total + 1 - 4), V128]]), ...body];
}

/** A module with an imported memory and the exported function. */
function scanModule(vectors: number): Uint8Array<ArrayBuffer> {
  const [letter, isMemory] = ['m'.charCodeAt(0), 2];
  const code = scanCode(vectors);
  return Uint8Array.from([
    ...[0, ...Buffer.from('asm'), 1, 0, 0, 0],
    ...section(1, list([[0x60, 4, I32, I32, I32, I32, 0]])),
    ...section(2, list([[1, letter, 1, letter, isMemory, 0, 1]])),
    ...section(3, list([[0]])),
    ...section(7, list([[1, letter, 0, 0]])),
    ...section(10, list([[...unsigned(code.length), ...code]])),
  ]);
}

const PAGE = 65_536;

type Scan = (codes: number, end: number, sums: number, planes: number) => void;

/** The codes of vectors, in memory that WebAssembly reads. */
export class CodeScan {
  readonly #scan: Scan;
  readonly #codeBytes: number;
  readonly #sums: Uint16Array;
  /** `[count, bits / 8]` */
  readonly codes: Uint8Array;
  /** `[QUERY_BITS, bits / 8]`, of the query that is scanned for. */
  readonly planes: Uint8Array;

  /**
   * @param bits of a code, a multiple of {@link CODE_STEP}, at most 4096.
   * @param block the most codes of one scan.
   */
  constructor(count: number, bits: number, block: number) {
    if (bits % CODE_STEP !== 0 || bits > MOST_BITS) throw new RangeError(`codes of ${bits} bits`);
    this.#codeBytes = bits / 8;
    const planesBytes = QUERY_BITS * this.#codeBytes;
    const sumsAt = planesBytes;
    const codesAt = Math.ceil((sumsAt + 2 * block) / 16) * 16;
    const bytes = codesAt + count * this.#codeBytes;
    const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / PAGE) });
    const module = new WebAssembly.Module(scanModule(bits / CODE_STEP));
    this.#scan = new WebAssembly.Instance(module, { m: { m: memory } }).exports['m'] as Scan;
    this.planes = new Uint8Array(memory.buffer, 0, planesBytes);
    this.#sums = new Uint16Array(memory.buffer, sumsAt, block);
    this.codes = new Uint8Array(memory.buffer, codesAt, count * this.#codeBytes);
  }

  /** @returns `[end - start]`, the sums of codes [start, end); valid until the next scan. */
  sums(start: number, end: number): Uint16Array {
    const at = (code: number) => this.codes.byteOffset + code * this.#codeBytes;
    if (end > start) this.#scan(at(start), at(end), this.#sums.byteOffset, 0);
    return this.#sums.subarray(0, end - start);
  }
}
