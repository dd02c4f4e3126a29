/** The folder of the package: protos/ and models/ lie there, whether the code runs from sources or from dist/. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ServingError } from './errors.ts';

export const PACKAGE_ROOT = (() => {
  const start = dirname(fileURLToPath(import.meta.url));
  let dir = start;
  while (!existsSync(join(dir, 'package.json'))) {
    if (dir === dirname(dir)) throw new ServingError('internal', `no package.json above ${start}`);
    dir = dirname(dir);
  }
  return dir;
})();

/** The repository that ships, to be indexed. */
export const SAMPLE_REPOSITORY = join(PACKAGE_ROOT, 'examples', 'shop');
