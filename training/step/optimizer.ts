/**
 * The optimiser of a training run: AdamW as torch.optim.AdamW computes it, the clipping of gradients, and the schedules
 * of the learning rate as Hugging Face's transformers has them. All of it is arithmetic on arrays in place.
 */
import type { SCHEDULES } from '../choices.ts';
import type { Tensors } from './tensors.ts';

interface AdamSettings {
  /** Decay of the running means of the gradient and of its square. */
  readonly betas: readonly [number, number];
  readonly epsilon: number;
  /** Decoupled weight decay, as a share per unit of the learning rate. */
  readonly weightDecay: number;
}

export const ADAM_DEFAULTS: AdamSettings = { betas: [0.9, 0.999], epsilon: 1e-8, weightDecay: 0 };

/** What a checkpoint needs to go on: running means of gradients and of their squares, and the number of steps. */
export interface AdamState {
  readonly steps: number;
  readonly means: Tensors;
  readonly squares: Tensors;
}

/** Biases and the scales of norms are not decayed: only matrices are. */
const decays = (name: string) => /^linear_\d+\.weight$/.test(name);

export class AdamW {
  readonly #parameters: Tensors;
  readonly #settings: AdamSettings;
  readonly #means: Tensors;
  readonly #squares: Tensors;
  #steps: number;

  /**
   * @param parameters changed in place by {@link step}
   * @param state of an earlier run; zeros where not given
   */
  constructor(parameters: Tensors, settings: AdamSettings = ADAM_DEFAULTS, state?: AdamState) {
    this.#parameters = parameters;
    this.#settings = settings;
    const zeros = () => new Map([...parameters].map(([name, values]) => [name, new Float32Array(values.length)]));
    this.#steps = state?.steps ?? 0;
    this.#means = state?.means ?? zeros();
    this.#squares = state?.squares ?? zeros();
  }

  /** The state itself, not a copy of it. */
  get state(): AdamState {
    return { steps: this.#steps, means: this.#means, squares: this.#squares };
  }

  /** One step with gradients in the shapes of the parameters. */
  step(gradients: Tensors, learningRate: number): void {
    this.#steps++;
    const { betas, epsilon, weightDecay } = this.#settings;
    const [b1, b2] = betas;
    // The running means begin at 0; these corrections undo that.
    const meanCorrection = 1 - b1 ** this.#steps;
    const squareCorrection = Math.sqrt(1 - b2 ** this.#steps);
    for (const [name, parameter] of this.#parameters) {
      const gradient = gradients.get(name)!;
      const mean = this.#means.get(name)!;
      const square = this.#squares.get(name)!;
      const keep = decays(name) ? 1 - learningRate * weightDecay : 1;
      for (let i = 0; i < parameter.length; i++) {
        const g = gradient[i]!;
        mean[i]! += (g - mean[i]!) * (1 - b1);
        square[i] = square[i]! * b2 + g * g * (1 - b2);
        const size = Math.sqrt(square[i]!) / squareCorrection + epsilon;
        parameter[i] = parameter[i]! * keep - (learningRate / meanCorrection) * (mean[i]! / size);
      }
    }
  }
}

/**
 * Scales all gradients in place, so that their common L2 norm is at most `limit`, as torch.nn.utils.clip_grad_norm_
 * does.
 * @returns the norm before
 */
export function clip(gradients: Tensors, limit: number): number {
  let sum = 0;
  for (const gradient of gradients.values()) for (const value of gradient) sum += value * value;
  const norm = Math.sqrt(sum);
  const factor = limit / (norm + 1e-6);
  if (factor < 1) {
    for (const gradient of gradients.values()) for (let i = 0; i < gradient.length; i++) gradient[i]! *= factor;
  }
  return norm;
}

interface Schedule {
  readonly form: (typeof SCHEDULES)[number];
  /** Steps in which the rate rises from 0. */
  readonly warmup: number;
  /** All steps of the run, after which the rate is 0. */
  readonly total: number;
}

/** The share of the full learning rate at a step, counted from 0: the first step of a warm-up changes nothing. */
export function rateAt(step: number, { form, warmup, total }: Schedule): number {
  if (step < warmup) return step / Math.max(1, warmup);
  const progress = Math.min(1, (step - warmup) / Math.max(1, total - warmup));
  return form === 'cosine' ? 0.5 * (1 + Math.cos(Math.PI * progress)) : 1 - progress;
}
