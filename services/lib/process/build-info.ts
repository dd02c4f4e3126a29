/** Which build of the product runs: for `--version`, `/version` and the metric `llavacode:build_info`. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { PACKAGE_ROOT } from './package-root.ts';

export interface BuildInfo {
  readonly version: string;
  /** The commit that was built, in hex; not set where the build does not say. */
  readonly commit?: string;
}

/** The file beside package.json that an image's build writes the commit to. */
const COMMIT_FILE = 'commit';

export const BUILD_INFO: BuildInfo = (() => {
  const { version } = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { version: string };
  const commit = commitOf(join(PACKAGE_ROOT, COMMIT_FILE));
  return commit === undefined ? { version } : { version, commit };
})();

function commitOf(path: string): string | undefined {
  try {
    return /^[0-9a-f]{7,64}$/.exec(readFileSync(path, 'utf8').trim())?.[0];
  } catch {
    return undefined; // most builds have no such file
  }
}
