/** The bundle of a model that is named by its folder: the folder itself, or what is made of a checkpoint once. */
import { createHash } from 'node:crypto';
import { readdir, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { FORMAT, openBundle } from './lib/model/bundle/bundle.ts';
import type { ConfigOf } from './lib/process/config.ts';
import { ServingError } from './lib/process/errors.ts';
import type { SYSTEM_SETTINGS } from './settings.ts';

type BundleSource = Pick<ConfigOf<typeof SYSTEM_SETTINGS>, 'data' | 'precision'> & { readonly model: string };

/**
 * The path of `model` itself if it is a bundle. A checkpoint is made into a bundle once.
 * @throws ServingError bundle_invalid if it is neither.
 */
export async function bundleOf(
  { model, data, precision }: BundleSource,
  onProgress: (text: string) => void,
): Promise<string> {
  if (await exists(join(model, 'manifest.json'))) {
    await openBundle(model);
    return resolve(model);
  }
  if (!(await exists(join(model, 'config.json')))) {
    throw new ServingError(
      'bundle_invalid',
      `${model} is neither a bundle (manifest.json) nor a checkpoint (config.json)`,
    );
  }
  const name = basename(resolve(model));
  const to = resolve(data, 'bundles', `${name}-${precision}-${await signature(model)}`);
  if (!(await exists(join(to, 'manifest.json')))) {
    const { exportBundle } = await import('./lib/model/bundle/export-bundle.ts'); // needed once, and long to load
    await exportBundle({
      llm: model,
      to,
      name,
      precision,
      onProgress: ({ part, done, total }) => onProgress(`exporting ${part}: ${Math.round((100 * done) / total)} %`),
    });
  }
  return to;
}

/** A short hash that changes when a file of the checkpoint changes, or the form of bundles. */
async function signature(dir: string): Promise<string> {
  const hash = createHash('sha256').update(`${FORMAT}\n`);
  const entries = await readdir(dir, { recursive: true });
  for (const entry of entries.sort()) {
    const { size, mtimeMs } = await stat(join(dir, entry));
    hash.update(`${entry} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex').slice(0, 8);
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );
