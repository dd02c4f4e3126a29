/** The regression of a projection on memory tokens: its losses, their gradient, and steps that bring it nearer. */
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { distance, Regression } from '../../../training/pretrain/regression.ts';
import { initialParameters, TrainableProjector } from '../../../training/step/projector.ts';
import { temporaryFolder } from '../../support/models.ts';

const folder = await temporaryFolder();

describe('the distance of a soft token to a memory token', () => {
  test('its losses and their gradient are those that a hand computes', () => {
    const { mse, cosineDistance, gradient } = distance(Float32Array.of(3, 4), Float32Array.of(4, 3));
    expect(mse).toBeCloseTo(1, 6);
    expect(cosineDistance).toBeCloseTo(1 - 24 / 25, 6);
    // 2 (s - m) / 2 - m / 25 + 0.96 s / 25
    expect([...gradient].map((value) => Number(value.toFixed(5)))).toEqual([-1 - 0.16 + 0.1152, 1 - 0.12 + 0.1536]);
  });

  test('a vector of zeros has a cosine of 0, and the gradient of the squares alone', () => {
    const { mse, cosineDistance, gradient } = distance(new Float32Array(2), Float32Array.of(2, 0));
    expect({ mse, cosineDistance, gradient: [...gradient] }).toEqual({
      mse: 2,
      cosineDistance: 1,
      gradient: [-2, 0],
    });
  });

  test('its gradient is the one of finite differences', () => {
    const vector = fc.array(fc.double({ min: -2, max: 2, noNaN: true }), { minLength: 4, maxLength: 4 });
    const loss = (soft: readonly number[], memory: readonly number[]) => {
      const dot = soft.reduce((sum, value, i) => sum + value * memory[i]!, 0);
      const mse = soft.reduce((sum, value, i) => sum + (value - memory[i]!) ** 2, 0) / soft.length;
      return mse + 1 - dot / (Math.hypot(...soft) * Math.hypot(...memory));
    };
    fc.assert(
      fc.property(vector, vector, (soft, memory) => {
        fc.pre(Math.hypot(...soft) > 0.5 && Math.hypot(...memory) > 0.5);
        const { gradient } = distance(Float32Array.from(soft), Float32Array.from(memory));
        for (const i of soft.keys()) {
          const moved = (by: number) => loss(soft.with(i, soft[i]! + by), memory);
          expect(gradient[i]).toBeCloseTo((moved(1e-4) - moved(-1e-4)) / 2e-4, 4);
        }
      }),
    );
  });
});

describe('steps', () => {
  const widths = [6, 8, 8];
  const settings = { clipNorm: 1, weightDecay: 0 };
  const opened: TrainableProjector[] = [];
  afterAll(() => {
    for (const projector of opened) projector.dispose();
  });
  const open = async () => {
    const place = { folder, threads: 1 };
    const projector = await TrainableProjector.load({ widths }, initialParameters({ widths }, 0.5, 3), 'mse', place);
    opened.push(projector);
    return projector;
  };
  const wanted = [0, 1, 2].map((i) => ({
    name: `chunk ${i}`,
    embedding: Float32Array.from({ length: 6 }, (_, j) => Math.sin(7 * i + j)),
    memory: Float32Array.from({ length: 8 }, (_, j) => Math.cos(5 * i + j)),
  }));

  test('they bring the projection nearer, and go on from a state with the same bits', async () => {
    const [whole, parted] = [await open(), await open()];
    const regression = new Regression(whole, settings);
    const losses: number[] = [];
    for (let i = 0; i < 30; i++) losses.push((await regression.step(wanted, 0.02)).loss);
    expect(losses.at(-1)).toBeLessThan(0.2 * losses[0]!);
    const first = new Regression(parted, settings);
    for (let i = 0; i < 10; i++) await first.step(wanted, 0.02);
    const second = new Regression(parted, settings, first.optimizerState);
    const again: number[] = [];
    for (let i = 0; i < 20; i++) again.push((await second.step(wanted, 0.02)).loss);
    expect(again).toEqual(losses.slice(10));
  });

  test('a target that is not finite ends them with the name of its chunk', async () => {
    const regression = new Regression(await open(), settings);
    const broken = { ...wanted[1]!, memory: new Float32Array(8).fill(Number.NaN) };
    await expect(regression.step([wanted[0]!, broken], 0.1)).rejects.toMatchObject({
      code: 'training_diverged',
      message: expect.stringContaining('chunk 1: its distance'),
    });
  });
});
