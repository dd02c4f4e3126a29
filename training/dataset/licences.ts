/** Under which licence a repository is, as an SPDX identifier, by the words of its licence file. */

const LICENCE_FILE = /^(?:[^/]+\/)?(?:licen[cs]e|copying|unlicense)(?:[.-][\w.-]+)?$/i;

/** In the order in which they are tried: a more special text comes before the one that it contains. */
const WORDS: readonly (readonly [string, RegExp])[] = [
  ['AGPL-3.0', /GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3/i],
  ['LGPL-3.0', /GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3/i],
  ['LGPL-2.1', /GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1/i],
  ['GPL-3.0', /GNU GENERAL PUBLIC LICENSE\s+Version 3/i],
  ['GPL-2.0', /GNU GENERAL PUBLIC LICENSE\s+Version 2/i],
  ['Apache-2.0', /Apache License,?\s+Version 2\.0/i],
  ['MPL-2.0', /Mozilla Public License,?\s+(?:Version|v\.?)\s*2\.0/i],
  ['EPL-2.0', /Eclipse Public License\s+-?\s*v(?:ersion)?\s*2\.0/i],
  ['Unlicense', /This is free and unencumbered software released into the public domain/i],
  ['CC0-1.0', /CC0 1\.0 Universal/i],
  ['BSL-1.0', /Boost Software License\s+-\s+Version 1\.0/i],
  ['PSF-2.0', /PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2/i],
  ['BSD-3-Clause', /Redistribution and use in source and binary forms[\s\S]*Neither the names?\b/i],
  ['BSD-2-Clause', /Redistribution and use in source and binary forms/i],
  ['ISC', /Permission to use, copy, modify, and\/?(?:or)? distribute this software/i],
  ['MIT', /Permission is hereby granted, free of charge, to any person obtaining a copy/i],
];

export const isLicenceFile = (path: string) => LICENCE_FILE.test(path);

/** Undefined where the words are of none that is known. */
export function licenceOf(text: string): string | undefined {
  return WORDS.find(([, words]) => words.test(text))?.[0];
}
