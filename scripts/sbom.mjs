/**
 * Prints the SBOM of a release (CycloneDX): what npm installs for production, and what is in the operator page. The page
 * is built, so that its packages are development dependencies to npm, but their code ships in dist/page.
 *
 * It is npm's list of everything, less what package-lock.json marks as for development alone: `npm sbom --omit dev`
 * leaves out packages as well that production and development share.
 *
 *   npm run sbom
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** Packages that vite puts into the page; test/deploy/workflows.test.ts compares them with what it was built from. */
const IN_THE_PAGE = ['preact', 'uplot'];

const options = ['--sbom-format', 'cyclonedx', '--sbom-type', 'application', '--package-lock-only'];
const sbom = JSON.parse(execFileSync('npm', ['sbom', ...options], { encoding: 'utf8', maxBuffer: 64 << 20 }));
const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8'));

const shipped = new Set();
for (const [path, { version, dev }] of Object.entries(packages)) {
  const name = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
  if (!dev || IN_THE_PAGE.includes(name)) shipped.add(`${name}@${version}`);
}
const root = sbom.metadata.component['bom-ref'];
sbom.components = sbom.components.filter((component) => shipped.has(`${component.name}@${component.version}`));
const refs = new Set(sbom.components.map((component) => component['bom-ref']));
sbom.dependencies = sbom.dependencies
  .filter(({ ref }) => ref === root || refs.has(ref))
  .map(({ ref, dependsOn }) => ({ ref, dependsOn: dependsOn.filter((each) => refs.has(each)) }));
console.log(JSON.stringify(sbom, null, 2));
