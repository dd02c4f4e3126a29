/** Named arrays of floats: parameters, their gradients, and the optimiser's state. */
import type { Tensor } from '../../services/lib/engine/ort.ts';

export type Tensors = ReadonlyMap<string, Float32Array>;

export const float32 = (dims: readonly number[], data: Float32Array): Tensor => ({ type: 'float32', dims, data });

export const int64 = (dims: readonly number[], values: readonly number[]): Tensor => ({
  type: 'int64',
  dims,
  data: BigInt64Array.from(values, BigInt),
});
