/**
 * Tensors that the runtime reads or writes in place: over memory of this process, or in memory of a device. Bound
 * memory is kept alive by its value: an {@link OrtValue} references its typed array.
 */
import { ServingError } from '../process/errors.ts';
import { create, type Pointer, runtime } from './ort-api.ts';

/** The types of elements: their number in the C API, and the array that holds them; float16 as its bits. */
export const ELEMENT = {
  float32: { id: 1, array: Float32Array },
  uint8: { id: 2, array: Uint8Array },
  int8: { id: 3, array: Int8Array },
  int32: { id: 6, array: Int32Array },
  int64: { id: 7, array: BigInt64Array },
  float16: { id: 10, array: Uint16Array },
} as const;
export type TensorType = keyof typeof ELEMENT;
export type TensorData = Float32Array | Uint8Array | Int8Array | Int32Array | BigInt64Array | Uint16Array;

/** Row-major elements; float16 as its bits in a Uint16Array. */
export interface Tensor {
  readonly type: TensorType;
  readonly dims: readonly number[];
  readonly data: TensorData;
}

/** A tensor that can be bound to an input or output, wherever its memory lies. */
export interface BoundValue {
  /** @internal */ readonly pointer: Pointer;
  /** False once it has been disposed of. */
  readonly alive: boolean;
  /** Whether the memory belongs to this process, so that a device copies from or to it. */
  readonly onHost: boolean;
}

export const elements = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);

/** A tensor in memory of this process. */
export class OrtValue implements BoundValue {
  /** @internal */ readonly pointer: Pointer;
  readonly tensor: Tensor;
  readonly onHost = true;
  #alive = true;

  /**
   * @param tensor small data must lie in an explicit ArrayBuffer (`new Float32Array(new ArrayBuffer(n))`), because V8
   *   moves small typed arrays.
   * @param pointer a value over the same memory that exists already; this one takes it over.
   */
  constructor(tensor: Tensor, pointer?: Pointer) {
    const count = elements(tensor.dims);
    if (count > tensor.data.length || !(tensor.data instanceof ELEMENT[tensor.type].array)) {
      throw new ServingError(
        'runtime_failed',
        `a ${tensor.type} tensor [${tensor.dims}] does not fit ${tensor.data.length} ${tensor.data.constructor.name} elements`,
      );
    }
    this.tensor = tensor;
    this.pointer = pointer ?? wrap(runtime().cpu, tensor.data, tensor.type, tensor.dims);
  }

  get alive(): boolean {
    return this.#alive;
  }

  dispose(): void {
    if (this.#alive) runtime().api.releaseValue(this.pointer);
    this.#alive = false;
  }
}

/** @internal A value over memory that somebody else owns: an array, or the address that a device tensor has. */
export function wrap(
  memory: Pointer,
  address: TensorData | Pointer,
  type: TensorType,
  dims: readonly number[],
): Pointer {
  const { api } = runtime();
  const bytes = elements(dims) * ELEMENT[type].array.BYTES_PER_ELEMENT;
  const shape = BigInt64Array.from(dims.map(BigInt));
  return create(api, api.createTensorWithData, memory, address, bytes, shape, dims.length, ELEMENT[type].id);
}
