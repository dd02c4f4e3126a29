// Builds unless `dist/` was made of the sources as they are: a build takes 5 s of CPU time, nearly as much as starting
// the system. Then this process becomes the command `llavacode`, with the words that were given: another one would take
// longer to come up. Used by `npm start` and `npm run demo`.
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const SOURCES = ['services', 'bench', 'training', 'test', 'page', 'protos'];
const INPUTS = [...SOURCES, 'tsconfig.json', 'package.json', 'package-lock.json'];
/** The build writes it. */
const GENERATED = join('services', 'lib', 'rpc', 'gen');
/** Its time is that of the build, and its text the number of files and folders beside it. */
const STAMP = join('dist', '.built');

/** The time of the last change below a path, in ms. A folder changes with the names in it. */
function changedMs(path) {
  const entry = statSync(path);
  if (path === GENERATED) return 0;
  if (!entry.isDirectory()) return entry.mtimeMs;
  return readdirSync(path).reduce((latest, name) => Math.max(latest, changedMs(join(path, name))), entry.mtimeMs);
}

/** How much there is in `dist/`, of which somebody may have deleted a part. */
const builtNames = () => String(readdirSync('dist', { recursive: true }).filter((name) => name !== '.built').length);

function isCurrent() {
  const stamp = statSync(STAMP, { throwIfNoEntry: false });
  if (stamp === undefined || readFileSync(STAMP, 'utf8') !== builtNames()) return false;
  return INPUTS.every((path) => changedMs(path) < stamp.mtimeMs);
}

if (!isCurrent()) {
  mkdirSync(GENERATED, { recursive: true }); // its coming is no change of a source
  const started = new Date();
  execFileSync('npm', ['run', '--silent', 'build'], { stdio: 'inherit', shell: process.platform === 'win32' });
  writeFileSync(STAMP, builtNames());
  utimesSync(STAMP, started, started); // what is changed while it builds is built at the next start
}

const words = process.argv.slice(2);
if (words.length > 0) {
  process.argv[1] = resolve('dist', 'services', 'cli.js');
  await import(pathToFileURL(process.argv[1]).href);
}
