/** A bundle that encodes, for tests of real processes. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type ExportOptions, exportBundle } from '../../services/lib/model/bundle/export-bundle.ts';
import { GOLDENS, safetensorsBytes } from './models.ts';

type Choices = Partial<Pick<ExportOptions, 'precision' | 'softPerChunk'>>;

/** A bundle of the smallest model, which encodes thousands of chunks a second: a golden LLM that is its own encoder. */
export async function smallestBundle(dir: string, choices: Choices = {}): Promise<string> {
  const hidden = 64;
  const tensors = [1, 2].flatMap((layer) => [
    { name: `linear_${layer}.weight`, shape: [hidden, hidden] },
    { name: `linear_${layer}.bias`, shape: [hidden] },
  ]);
  tensors.push({ name: 'ln_1.weight', shape: [hidden] }, { name: 'ln_1.bias', shape: [hidden] });
  let at = 0;
  const header = Object.fromEntries(
    tensors.map(({ name, shape }) => {
      const begin = at;
      at += 4 * shape.reduce((product, dim) => product * dim, 1);
      return [name, { dtype: 'F32', shape, data_offsets: [begin, at] }];
    }),
  );
  const projector = join(dir, 'projector');
  await mkdir(projector, { recursive: true });
  const bytes = safetensorsBytes(header, at);
  // Weights that are all zero would give the same vector for every text, whoever computes it.
  const values = new DataView(bytes.buffer, bytes.byteLength - at);
  for (let i = 0; i < at / 4; i++) values.setFloat32(4 * i, Math.sin(i * i) / 4, true);
  await writeFile(join(projector, 'model.safetensors'), bytes);
  const llm = join(GOLDENS, 'qwen2-tied');
  const { precision = 'fp32' } = choices;
  const to = join(dir, precision === 'fp32' ? 'bundle' : precision);
  await exportBundle({ llm, projector, to, name: 'golden', ...choices, precision });
  return to;
}
