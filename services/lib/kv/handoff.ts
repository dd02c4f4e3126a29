/**
 * A KV cache as frames: how the sender packs them and how the receiver checks and unpacks them. The receiver accepts
 * frames only in the order of {@link planFrames}, each with its CRC, and an end that proves that none is missing.
 *
 * The sender's frames lie in buffers of frame-buffer.ts, which are used again for later frames once gRPC has serialised
 * a frame: to keep a frame for longer, copy it.
 */
import { crc32 } from 'node:zlib';
import { ServingError } from '../process/errors.ts';
import { allocateRows } from './frame-buffer.ts';
import { describeLayout, FRAME_BYTES, type KvLayout, type KvRange, planFrames, rowCount } from './layout.ts';
import type { KvPool } from './pool.ts';
import { decodeRow, encodeRow, vectorBytes, type WireType } from './wire.ts';

/** The content of the first frame. */
export interface KvManifest {
  readonly fingerprint: string;
  readonly layout: KvLayout;
  readonly dtype: string;
  /** Prompt positions that will follow. */
  readonly positions: number;
}

export interface KvRows extends KvRange {
  /** CRC-32 of `data`. */
  readonly crc32: number;
  /** Rows [rowStart, rowEnd), one after the other, in the form of the {@link WireType}. */
  readonly data: Uint8Array;
}

/** The content of the last frame; the receiver compares it with what it has got. */
export interface KvEnd {
  readonly frames: number;
  readonly bytes: number;
  /** CRC-32 over the frames' CRCs and then the first tokens, each 4 bytes little-endian. */
  readonly digest: number;
  /** Sampled continuation of the prompt, one per choice. */
  readonly firstTokenIds: number[];
}

/** Running totals of a stream of frames; both sides keep one. */
class Tally {
  frames = 0;
  bytes = 0;
  digest = 0;

  add(frame: KvRows): void {
    this.digest = crc32(Buffer.from(Uint32Array.of(frame.crc32).buffer), this.digest);
    this.bytes += frame.data.byteLength;
    this.frames++;
  }

  digestWith(firstTokenIds: readonly number[]): number {
    if (firstTokenIds.length === 0) return this.digest; // crc32 of an empty buffer is 0, whatever CRC it continues
    return crc32(Buffer.from(Int32Array.from(firstTokenIds).buffer), this.digest);
  }
}

/** Packs finished positions of one slot, frame by frame. */
export class KvSender {
  readonly #pool: KvPool;
  readonly #slot: number;
  readonly #type: WireType;
  readonly #tally = new Tally();

  constructor(pool: KvPool, slot: number, type: WireType = 'float32') {
    this.#pool = pool;
    this.#slot = slot;
    this.#type = type;
  }

  /**
   * Frames of positions [start, end). Their data are copies, so that the slot may change afterwards. A frame's data are
   * valid until gRPC has serialised it; see {@link allocateRows}.
   */
  *pack(start: number, end: number): Generator<KvRows> {
    const { headDim } = this.#pool.layout;
    const vector = vectorBytes(this.#type, headDim);
    // planFrames counts in float32. This gives frames of the same size on the wire for every type.
    const frameBytes = Math.floor((FRAME_BYTES * headDim * 4) / vector);
    for (const range of planFrames(this.#pool.layout, start, end, frameBytes)) {
      const rowBytes = (range.end - range.start) * vector;
      const data = allocateRows((range.rowEnd - range.rowStart) * rowBytes);
      let crc = 0;
      for (let row = range.rowStart, at = 0; row < range.rowEnd; row++, at += rowBytes) {
        const encoded = data.subarray(at, at + rowBytes);
        const from = [this.#slot, row, range.start, range.end] as const;
        if (this.#type === this.#pool.floats) encoded.set(this.#pool.rowBytes(...from));
        else encodeRow(this.#type, this.#pool.row(...from), headDim, encoded);
        crc = crc32(encoded, crc); // row by row, while the row is in the CPU's cache
      }
      const frame = { ...range, data, crc32: crc };
      this.#tally.add(frame);
      yield frame;
    }
  }

  end(firstTokenIds: readonly number[]): KvEnd {
    const { frames, bytes } = this.#tally;
    return { frames, bytes, digest: this.#tally.digestWith(firstTokenIds), firstTokenIds: [...firstTokenIds] };
  }
}

/** Writes a stream of frames into one slot, checking each. */
export class KvReceiver {
  readonly #pool: KvPool;
  readonly #slot: number;
  readonly #fingerprint: string;
  readonly #type: WireType;
  readonly #tally = new Tally();
  #positions = -1;
  /** The place at which the next frame must begin. */
  #next = { start: 0, end: 0, row: 0 };

  /** @param type the form that the sender was asked for. */
  constructor(pool: KvPool, slot: number, fingerprint: string, type: WireType = 'float32') {
    this.#pool = pool;
    this.#slot = slot;
    this.#fingerprint = fingerprint;
    this.#type = type;
  }

  get bytes(): number {
    return this.#tally.bytes;
  }

  /** @throws ServingError fingerprint_mismatch, kv_layout_mismatch or context_length_exceeded. */
  manifest(manifest: KvManifest): void {
    const mine = this.#pool.layout;
    if (manifest.fingerprint !== this.#fingerprint) {
      throw new ServingError(
        'fingerprint_mismatch',
        `the KV cache is of model ${manifest.fingerprint}, this worker serves ${this.#fingerprint}`,
      );
    }
    const same =
      manifest.dtype === this.#type &&
      manifest.layout.layers === mine.layers &&
      manifest.layout.kvHeads === mine.kvHeads &&
      manifest.layout.headDim === mine.headDim;
    if (!same) {
      throw new ServingError(
        'kv_layout_mismatch',
        `the KV cache is ${describeLayout(manifest.layout)} of ${manifest.dtype}, this worker takes ${describeLayout(mine)} of ${this.#type}`,
      );
    }
    if (manifest.positions >= this.#pool.capacity) {
      throw new ServingError(
        'context_length_exceeded',
        `the KV cache has ${manifest.positions} positions, a slot here holds ${this.#pool.capacity}`,
      );
    }
    this.#positions = manifest.positions;
  }

  /** @throws ServingError kv_digest_mismatch for damaged bytes, kv_truncated for a frame that is not the next one. */
  rows(frame: KvRows): void {
    const { headDim } = this.#pool.layout;
    const rowBytes = (frame.end - frame.start) * vectorBytes(this.#type, headDim);
    if (!this.#isNext(frame) || frame.data.byteLength !== (frame.rowEnd - frame.rowStart) * rowBytes) {
      throw new ServingError(
        'kv_truncated',
        `KV frame ${this.#tally.frames} is rows [${frame.rowStart}, ${frame.rowEnd}) of positions [${frame.start}, ${frame.end}) in ${frame.data.byteLength} bytes; expected row ${this.#next.row} from position ${this.#next.start} of ${this.#positions}`,
      );
    }
    const crc = crc32(frame.data);
    if (crc !== frame.crc32) {
      throw new ServingError(
        'kv_digest_mismatch',
        `KV frame ${this.#tally.frames} was damaged on the way: CRC-32 ${hex(crc)}, sent as ${hex(frame.crc32)}`,
      );
    }
    for (let row = frame.rowStart, at = 0; row < frame.rowEnd; row++, at += rowBytes) {
      const encoded = frame.data.subarray(at, at + rowBytes);
      const to = [this.#slot, row, frame.start, frame.end] as const;
      if (this.#type === this.#pool.floats) this.#pool.rowBytes(...to).set(encoded);
      else decodeRow(this.#type, encoded, headDim, this.#pool.row(...to));
    }
    this.#tally.add(frame);
    const done = frame.rowEnd === rowCount(this.#pool.layout);
    this.#next = done
      ? { start: frame.end, end: 0, row: 0 }
      : { start: frame.start, end: frame.end, row: frame.rowEnd };
  }

  /** @throws ServingError kv_truncated or kv_digest_mismatch unless exactly what was sent has come. */
  end(end: KvEnd): void {
    if (this.#next.start !== this.#positions || this.#next.row !== 0 || end.frames !== this.#tally.frames) {
      throw new ServingError(
        'kv_truncated',
        `the KV stream ended at position ${this.#next.start} of ${this.#positions}, after ${this.#tally.frames} of ${end.frames} frames`,
      );
    }
    const digest = this.#tally.digestWith(end.firstTokenIds);
    if (end.digest !== digest || end.bytes !== this.#tally.bytes) {
      throw new ServingError(
        'kv_digest_mismatch',
        `the KV stream's digest is ${hex(digest)}, sent as ${hex(end.digest)}`,
      );
    }
  }

  #isNext(frame: KvRange): boolean {
    const next = this.#next;
    return (
      frame.start === next.start &&
      frame.rowStart === next.row &&
      frame.rowEnd > frame.rowStart &&
      frame.rowEnd <= rowCount(this.#pool.layout) &&
      (next.row === 0 ? frame.end > frame.start && frame.end <= this.#positions : frame.end === next.end)
    );
  }
}

const hex = (crc: number) => crc.toString(16).padStart(8, '0');
