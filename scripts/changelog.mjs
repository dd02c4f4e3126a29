/**
 * CHANGELOG.md at a release. People write it, under Unreleased; changesets choose the version.
 *
 *   node scripts/changelog.mjs release          dates what is unreleased, as the version of package.json
 *   node scripts/changelog.mjs notes VERSION    prints what is said of a version
 *
 * Both work in the current folder.
 */
import { readFileSync, writeFileSync } from 'node:fs';

const UNRELEASED = '## Unreleased\n';
const [what, given] = process.argv.slice(2);
const text = readFileSync('CHANGELOG.md', 'utf8');

const fail = (message) => {
  console.error(`changelog: ${message}`);
  process.exit(1);
};

/** What stands under a heading of the second level; undefined where there is none. */
const under = (heading) =>
  text
    .split(/^(?=## )/m)
    .find((section) => section.startsWith(heading))
    ?.slice(heading.length)
    .trim();

if (what === 'release') {
  const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
  if (!under(UNRELEASED)) fail('nothing stands under Unreleased: say there what the release changes');
  if (text.includes(`## ${version}\n`)) fail(`${version} is there already: add a changeset, which raises the version`);
  writeFileSync('CHANGELOG.md', text.replace(UNRELEASED, `${UNRELEASED}\n## ${version}\n`));
} else if (what === 'notes') {
  const notes = under(`## ${given}\n`);
  if (notes === undefined) fail(`CHANGELOG.md has no version ${given}`);
  console.log(notes);
} else {
  fail(`${what ?? 'nothing'} is not one of: release, notes`);
}
