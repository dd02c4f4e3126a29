/** What a worker's engine takes of the memory in which it computes, and whether that fits. */
import { positionBytes } from '../kv/layout.ts';
import { floatsOf, type Manifest } from '../model/bundle/bundle.ts';
import type { DecoderSpec } from '../model/checkpoint/spec.ts';
import { VERIFIED_ROWS } from '../model/graph/row-graph.ts';
import { ServingError } from '../process/errors.ts';
import { machineMemory, sizeText } from '../process/memory.ts';
import { kvLayoutOf } from './kv-layout.ts';

/** Tokens of a prompt's chunk where no setting says it: the default of --prefill-chunk-tokens. */
export const DEFAULT_CHUNK_TOKENS = 512;

/** How CUDA writes out a large matrix: see writtenMatrix. */
const WRITTEN_BYTES = 256 * 2 ** 20;
const WRITTEN_ROWS = 32_768;

/**
 * Bytes that the session of a verify run has of its own for one layer and one row, beside the weights, which it maps as
 * the decoder's session does. Four sessions of 24 layers (0.5B), with 17 rows together, took 26 MiB without logits.
 */
const VERIFY_ROW_BYTES = 64 * 2 ** 10;

export interface EngineMemory {
  /** Bytes of the weights' files. */
  readonly weights: number;
  /** Bytes of KV caches: `slots` x `capacity` x `perToken`. */
  readonly kv: number;
  readonly slots: number;
  readonly perToken: number;
  /** Bytes of the slot of floats in which prompts are computed where KV lies in int8; 0 without. */
  readonly staged: number;
  /** Rows of the largest step. */
  readonly stepRows: number;
  /** Bytes of the logits of the largest step. */
  readonly logits: number;
  /** Bytes of the sessions of verify runs, their logits included; 0 without them. */
  readonly verify: number;
  /**
   * Bytes of the intermediate results of a run on a device, and of a matrix that it writes out. Those of the CPU come
   * from what the process has anyway.
   */
  readonly scratch: number;
}

/**
 * @param part the part of the bundle whose weights are loaded.
 * @param slots KV slots, the staging slot of a device included.
 * @param runs tokens of the largest run, whose intermediate results must fit, and rows of the largest step, whose
 *   logits must; whether there are verify runs; and whether prompts are computed.
 */
export function engineMemory(
  manifest: Pick<Manifest, 'llm' | 'prefill' | 'precision' | 'kv'>,
  part: 'llm' | 'prefill',
  slots: number,
  capacity: number,
  runs: {
    readonly tokens?: number;
    readonly stepRows?: number;
    readonly verified?: boolean;
    readonly computesPrompts?: boolean;
  } = {},
): EngineMemory {
  const { llm, prefill } = manifest;
  const files = part === 'prefill' ? (prefill ?? llm).files : llm.files;
  const { spec } = llm;
  const { tokens = DEFAULT_CHUNK_TOKENS, stepRows = slots, verified = false, computesPrompts = true } = runs;
  const verifiedRows = verified ? VERIFIED_ROWS.reduce((sum, rows) => sum + rows, 0) : 0;
  const floats = floatsOf(manifest);
  const layout = kvLayoutOf(manifest);
  const perToken = positionBytes(layout);
  const isStaged = layout.type === 'int8-channel' && computesPrompts;
  // CUDA computes 16 bits only, so other precisions never write a matrix out.
  const written = floats === 'float16' && manifest.precision !== 'fp16' ? writtenMatrix(spec) : 0;
  // At its widest a run holds the gated and the plain half of an MLP, their product, and the residual stream twice.
  const width = 3 * spec.intermediate + 2 * spec.hidden;
  return {
    weights: files.reduce((sum, { bytes }) => sum + bytes, 0),
    kv: perToken * capacity * slots,
    slots,
    perToken,
    staged: isStaged ? capacity * positionBytes({ ...layout, type: 'float32' }) : 0,
    stepRows,
    logits: spec.vocab * 4 * stepRows,
    verify: verifiedRows * (spec.vocab * 4 + spec.layers * VERIFY_ROW_BYTES),
    scratch: tokens * width * (floats === 'float16' ? 2 : 4) + written,
  };
}

/**
 * Bytes of the widest matrix in 16 bits. CUDA writes a quantised matrix out before it multiplies it by more than 16
 * rows, where none of its kernels for many rows takes it (model/bundle/weight-formats.ts). Of a matrix of more than 256
 * MiB it writes 32,768 rows at a time, if it has more than twice as many (MatMulNBits of ONNX Runtime 1.30).
 */
function writtenMatrix({ intermediate, hidden, vocab }: DecoderSpec): number {
  const whole = vocab * hidden * 2;
  const inParts = whole > WRITTEN_BYTES && vocab > 2 * WRITTEN_ROWS;
  return Math.max(intermediate * hidden * 2, inParts ? WRITTEN_ROWS * hidden * 2 : whole);
}

/**
 * Checked before gigabytes are read. Without the check the kernel would kill the process later, under load.
 * @throws ServingError out_of_memory, with the arithmetic.
 */
export function assertFitsMachine(need: EngineMemory, capacity: number): void {
  const available = machineMemory();
  const { weights, kv, staged, logits, verify } = need;
  if (weights + kv + staged + logits + verify <= available) return;
  throw new ServingError(
    'out_of_memory',
    `${described(need, capacity)}; the machine has ${sizeText(available)}; lower --slots or --capacity` +
      (verify > 0 ? ', or set --speculation off' : ''),
  );
}

/**
 * A device is checked against what the CPU computes, for which the machine must hold the model once, for a moment.
 * @param device that is checked.
 * @param kept name of the file in which the result would be kept.
 * @throws ServingError provider_unavailable, with the arithmetic.
 */
export function assertReferenceFits({ weights, kv, logits }: EngineMemory, device: string, kept: string): void {
  const available = machineMemory();
  if (weights + kv + logits <= available) return;
  throw new ServingError(
    'provider_unavailable',
    `${device} cannot be checked here: it is compared with the CPU, for which the model takes ` +
      `${sizeText(weights + kv + logits)} of the machine's memory once, and it has ${sizeText(available)}. Let ` +
      `llavacode devices check this bundle on a machine with more, and bring ${kept} from its folder of prepacked ` +
      'weights to that of --prepacked here; or, with weights of fewer bits, use --provider cpu',
  );
}

/**
 * @param bytes what the worker may take of the device's memory: --device-memory.
 * @throws ServingError out_of_memory, with the arithmetic.
 */
export function assertFitsDevice(need: EngineMemory, capacity: number, bytes: number): void {
  const { weights, kv, logits, scratch } = need;
  if (weights + kv + logits + scratch <= bytes) return;
  throw new ServingError(
    'out_of_memory',
    `${described(need, capacity)}, the results within a run about ${sizeText(scratch)}; --device-memory ${bytes} ` +
      `is ${sizeText(bytes)}; lower --slots or --capacity, take weights of fewer bits, or raise --device-memory if ` +
      'the device has more',
  );
}

const described = (
  { weights, kv, slots, perToken, staged, stepRows, logits, verify }: EngineMemory,
  capacity: number,
) =>
  `the weights take ${sizeText(weights)}, the KV pool ${slots} slots x ${capacity} tokens x ${perToken} bytes = ` +
  `${sizeText(kv)}, ` +
  (staged > 0 ? `a slot of floats for prompts ${sizeText(staged)}, ` : '') +
  `logits ${stepRows} slots x ${logits / 4 / stepRows} ids x 4 bytes = ${sizeText(logits)}` +
  (verify > 0 ? `, verify runs about ${sizeText(verify)}` : '');
