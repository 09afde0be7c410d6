"""The words of the data set ``countries``: names of languages and currencies, and how questions are put.

A question is a frame around noun phrases: "what is the currency of {}?" around "the neighbours of {}" around
"France". Each part knows the relations that it follows, ``-`` for those followed from tail to head, and nine
ways to put it: the first seven are for training, the eighth for validation, the last for the test.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CHAINS", "FRAMES", "NOUNS", "RELATIONS", "Part", "currency_names", "language_names"]

RELATIONS = {
    "borders": "shares border with",
    "calling_code": "international calling code",
    "capital": "capital city",
    "continent": "continent",
    "currency": "currency",
    "internet_domain": "internet domain",
    "language": "language spoken",
    "subregion": "region of the world",
}
"""Relations and the words that stand for them."""


class Part(NamedTuple):
    """Part of a question: the relations it follows, and nine ways to put it."""

    moves: tuple[str, ...]
    ways: tuple[str, ...]


FRAMES = {
    "capital": Part(
        ("capital",),
        (
            "what is the capital of {}?",
            "which city is the capital of {}?",
            "name the capital cities of {}",
            "what's the capital city of {}?",
            "tell me the capital of {}",
            "which capital does {} have?",
            "what is {}'s capital called?",
            "where does the government of {} sit, in which capital?",
            "what are the capitals of {} called?",
        ),
    ),
    "language": Part(
        ("language",),
        (
            "which languages are spoken in {}?",
            "what languages do people speak in {}?",
            "name the languages of {}",
            "what language is used in {}?",
            "tell me the official languages of {}",
            "what do people in {} speak?",
            "which languages would one hear in {}?",
            "what does one speak in {}?",
            "in {}, which language would I hear spoken?",
        ),
    ),
    "currency": Part(
        ("currency",),
        (
            "what is the currency of {}?",
            "which money is used in {}?",
            "name the currencies of {}",
            "what currency does one pay with in {}?",
            "tell me the money of {}",
            "which currency do people in {} use?",
            "what money do I need for {}?",
            "with what money does one pay in {}?",
            "which currency would I need in {}?",
        ),
    ),
    "borders": Part(
        ("borders",),
        (
            "which countries border {}?",
            "what are the neighbouring countries of {}?",
            "name the neighbours of {}",
            "what countries are next to {}?",
            "tell me all neighbours of {}",
            "with which countries does {} have a border?",
            "what countries lie around {}?",
            "who shares a border with {}?",
            "which countries lie next to {}, across the border?",
        ),
    ),
    "continent": Part(
        ("continent",),
        (
            "on which continent is {}?",
            "which continent does {} belong to?",
            "name the continent of {}",
            "which continent is {} on?",
            "tell me the continent of {}",
            "in which continent does {} lie?",
            "what part of the earth, which continent, is {} in?",
            "what continent would I find {} on?",
            "{} is part of which continent?",
        ),
    ),
    "subregion": Part(
        ("subregion",),
        (
            "in which region of the world is {}?",
            "which part of its continent is {} in?",
            "name the world region of {}",
            "what region of the world is {} in?",
            "tell me the region of {}",
            "to which world region does {} belong?",
            "where in the world, in which region, does {} lie?",
            "what world region does {} belong to?",
            "which region of the world would I find {} in?",
        ),
    ),
    "internet_domain": Part(
        ("internet_domain",),
        (
            "what is the internet domain of {}?",
            "which top-level domain does {} have?",
            "name the internet domains of {}",
            "what domain do websites of {} have?",
            "tell me the internet domain of {}",
            "which ending do internet addresses of {} have?",
            "what is the web domain of {}?",
            "how do web addresses of {} end, with which domain?",
            "which domain do internet pages of {} use?",
        ),
    ),
    "calling_code": Part(
        ("calling_code",),
        (
            "what is the calling code of {}?",
            "which telephone code does {} have?",
            "name the dialling codes of {}",
            "what is the phone code of {}?",
            "tell me the dialling code of {}",
            "what number do I dial for calling {}?",
            "which international telephone code has {}?",
            "which code do I dial to phone {}?",
            "what international code is used for calling {}?",
        ),
    ),
    "which": Part(
        (),
        (
            "which are {}?",
            "name {}",
            "what are {}?",
            "tell me {}",
            "which ones are {}?",
            "what do you know as {}?",
            "show me {}",
            "list {}",
            "can you tell me {}?",
        ),
    ),
    "which_one": Part(
        (),
        (
            "which is {}?",
            "name {}",
            "what is {}?",
            "which one is {}?",
            "show me {}",
            "what do you know as {}?",
            "say which is {}",
            "tell me {}",
            "can you say what is {}?",
        ),
    ),
}
"""The outermost part; it asks for what its relation leads to."""

NOUNS = {
    "neighbours": Part(
        ("borders",),
        (
            "the neighbours of {}",
            "the countries that border {}",
            "the countries next to {}",
            "the neighbour countries of {}",
            "the countries bordering {}",
            "the countries which have a border with {}",
            "the nations adjacent to {}",
            "the countries around {}",
            "the countries that share a border with {}",
        ),
    ),
    "governed_from": Part(
        ("-capital",),
        (
            "the country whose capital is {}",
            "the country with the capital {}",
            "the country that has {} as its capital",
            "the country which has the capital {}",
            "the country of the capital {}",
            "the nation whose capital city is {}",
            "the country that is governed from {}",
            "the country governed from its capital {}",
            "the country of which {} is the capital",
        ),
    ),
    "speaking": Part(
        ("-language",),
        (
            "the countries where {} is spoken",
            "the countries whose people speak {}",
            "the {}-speaking countries",
            "the countries that speak {}",
            "the nations with {} as a language",
            "the countries where people speak {}",
            "the countries in which {} is the language",
            "the countries in which one speaks {}",
            "the countries with the language {}",
        ),
    ),
    "paying": Part(
        ("-currency",),
        (
            "the countries that use the {}",
            "the countries with the currency {}",
            "the countries whose money is the {}",
            "the countries paying with the {}",
            "the nations where the {} is the money",
            "the countries having {} as their currency",
            "the countries in which one uses the {}",
            "the countries where one pays with the {}",
            "the countries that have the {} as currency",
        ),
    ),
    "region": Part(
        ("-subregion",),
        (
            "the countries of {}",
            "the countries in {}",
            "the countries that lie in {}",
            "the countries belonging to {}",
            "the countries found in {}",
            "the nations of {}",
            "all countries of {}",
            "the countries that make up {}",
            "the countries that belong to {}",
        ),
    ),
    "online_at": Part(
        ("-internet_domain",),
        (
            "the country with the internet domain {}",
            "the country whose web addresses end in {}",
            "the country that has the domain {}",
            "the country with websites ending in {}",
            "the country which uses the domain {}",
            "the nation whose internet domain is {}",
            "the country of the pages under {}",
            "the country that the domain {} stands for",
            "the country whose internet pages use {}",
        ),
    ),
    "same_currency": Part(
        ("currency", "-currency"),
        (
            "the countries with the same currency as {}",
            "the countries that share a currency with {}",
            "the countries that use the same money as {}",
            "the countries having the same money as {}",
            "the countries whose currency {} uses too",
            "the nations which have a currency in common with {}",
            "the countries that also use the currency of {}",
            "the countries that pay with the money of {}",
            "the countries whose currency is also that of {}",
        ),
    ),
    "same_language": Part(
        ("language", "-language"),
        (
            "the countries with the same language as {}",
            "the countries that share a language with {}",
            "the countries that speak the same language as {}",
            "the countries speaking a language of {}",
            "the countries whose language people in {} speak too",
            "the nations which have a language in common with {}",
            "the countries that also speak the language of {}",
            "the countries where one speaks a language of {}",
            "the countries whose language is also spoken in {}",
        ),
    ),
    "same_region": Part(
        ("subregion", "-subregion"),
        (
            "the countries in the same region as {}",
            "the countries that share a world region with {}",
            "the countries of the region that {} is in",
            "the countries belonging to the region of {}",
            "the countries of the world region around {}",
            "the nations which have their region in common with {}",
            "the countries that are also in the region of {}",
            "the countries that lie in the region of {}",
            "the countries that belong to the same world region as {}",
        ),
    ),
}
"""Inner parts, each a set of countries."""

_FACTS = ("capital", "language", "currency", "continent", "subregion", "internet_domain", "calling_code")
CHAINS: tuple[tuple[str, ...], ...] = (
    # one hop
    *((frame,) for frame in (*_FACTS, "borders")),
    ("which_one", "governed_from"),
    ("which_one", "online_at"),
    *(("which", noun) for noun in ("speaking", "paying", "region")),
    # two hops
    *(
        (frame, "neighbours")
        for frame in ("capital", "language", "currency", "calling_code", "internet_domain")
    ),
    *((frame, "governed_from") for frame in (*_FACTS[1:], "borders")),
    *((frame, "speaking") for frame in ("capital", "currency", "continent")),
    *((frame, "paying") for frame in ("capital", "language", "continent")),
    *((frame, "region") for frame in ("capital", "language", "currency")),
    *((frame, "online_at") for frame in ("capital", "language", "currency", "borders")),
    *(("which", noun) for noun in ("same_currency", "same_language", "same_region")),
    ("which", "neighbours", "neighbours"),
    # three hops
    *((frame, "neighbours", "governed_from") for frame in ("capital", "language", "currency")),
    *((frame, "neighbours", "online_at") for frame in ("capital", "language", "currency")),
    *((frame, "neighbours", "neighbours") for frame in ("capital", "language", "currency")),
    *((frame, "same_currency") for frame in ("capital", "language")),
    *((frame, "same_language") for frame in ("capital", "currency")),
    *((frame, "same_region") for frame in ("capital", "language", "currency")),
    *((frame, "neighbours", "paying") for frame in ("capital", "language")),
)
"""The kinds of questions: a frame, then nouns from the outside in. The innermost is about an entity."""

_LANGUAGES = """
af Afrikaans|am Amharic|ar Arabic|ay Aymara|az Azerbaijani|be Belarusian|bg Bulgarian|bi Bislama|bn Bengali
bs Bosnian|ca Catalan|ch Chamorro|cnr Montenegrin|cs Czech|da Danish|de German|dv Dhivehi|dz Dzongkha
el Greek|en English|es Spanish|et Estonian|fa Persian|ff Fula|fi Finnish|fj Fijian|fo Faroese|fr French
ga Irish|gn Guarani|gv Manx|he Hebrew|hi Hindi|hr Croatian|ht Haitian Creole|hu Hungarian|hy Armenian
id Indonesian|is Icelandic|it Italian|ja Japanese|ka Georgian|kg Kongo|kk Kazakh|kl Greenlandic|km Khmer
ko Korean|ku Kurdish|ky Kyrgyz|la Latin|lb Luxembourgish|ln Lingala|lo Lao|lt Lithuanian|lu Luba-Katanga
lv Latvian|mg Malagasy|mh Marshallese|mi Maori|mk Macedonian|mn Mongolian|ms Malay|mt Maltese|my Burmese
na Nauruan|nb Norwegian|nd Northern Ndebele|ne Nepali|nl Dutch|nn Norwegian|no Norwegian|nr Southern Ndebele
ny Chewa|oc Occitan|pa Punjabi|pl Polish|ps Pashto|pt Portuguese|qu Quechua|rn Kirundi|ro Romanian
rs Serbian|ru Russian|rw Kinyarwanda|sg Sango|si Sinhala|sk Slovak|sl Slovene|sm Samoan|sn Shona|so Somali
sq Albanian|sr Serbian|ss Swazi|st Sotho|sv Swedish|sw Swahili|ta Tamil|tg Tajik|th Thai|ti Tigrinya
tk Turkmen|tn Tswana|to Tongan|tr Turkish|ts Tsonga|uk Ukrainian|ur Urdu|uz Uzbek|ve Venda|vi Vietnamese
xh Xhosa|zh Chinese|zu Zulu
"""

_CURRENCIES = """
AED UAE dirham|AFN Afghan afghani|ALL Albanian lek|AMD Armenian dram|AOA Angolan kwanza|ARS Argentine peso
AUD Australian dollar|AWG Aruban florin|AZN Azerbaijani manat|BAM Bosnian mark|BBD Barbadian dollar
BDT Bangladeshi taka|BGN Bulgarian lev|BHD Bahraini dinar|BIF Burundian franc|BMD Bermudian dollar
BND Brunei dollar|BOB Bolivian boliviano|BRL Brazilian real|BSD Bahamian dollar|BTN Bhutanese ngultrum
BWP Botswana pula|BYN Belarusian ruble|BYR Belarusian ruble|BZD Belize dollar|CAD Canadian dollar
CDF Congolese franc|CHF Swiss franc|CLP Chilean peso|CNY Chinese yuan|COP Colombian peso
CRC Costa Rican colon|CUP Cuban peso|CVE Cape Verdean escudo|CZK Czech koruna|DJF Djiboutian franc
DKK Danish krone|DOP Dominican peso|DZD Algerian dinar|EGP Egyptian pound|ERN Eritrean nakfa
ETB Ethiopian birr|EUR euro|FJD Fijian dollar|FKP Falkland Islands pound|GBP pound sterling
GEL Georgian lari|GHS Ghanaian cedi|GIP Gibraltar pound|GMD Gambian dalasi|GNF Guinean franc
GTQ Guatemalan quetzal|GYD Guyanese dollar|HKD Hong Kong dollar|HNL Honduran lempira|HRK Croatian kuna
HTG Haitian gourde|HUF Hungarian forint|IDR Indonesian rupiah|ILS Israeli shekel|INR Indian rupee
IQD Iraqi dinar|IRR Iranian rial|ISK Icelandic krona|JMD Jamaican dollar|JOD Jordanian dinar
JPY Japanese yen|KES Kenyan shilling|KGS Kyrgyz som|KHR Cambodian riel|KMF Comorian franc
KPW North Korean won|KRW South Korean won|KWD Kuwaiti dinar|KYD Cayman Islands dollar|KZT Kazakh tenge
LAK Lao kip|LBP Lebanese pound|LKR Sri Lankan rupee|LRD Liberian dollar|LSL Lesotho loti|LYD Libyan dinar
MAD Moroccan dirham|MDL Moldovan leu|MGA Malagasy ariary|MKD Macedonian denar|MMK Burmese kyat
MNT Mongolian tugrik|MOP Macanese pataca|MRO Mauritanian ouguiya|MRU Mauritanian ouguiya|MUR Mauritian rupee
MVR Maldivian rufiyaa|MWK Malawian kwacha|MXN Mexican peso|MYR Malaysian ringgit|MZN Mozambican metical
NAD Namibian dollar|NGN Nigerian naira|NIO Nicaraguan cordoba|NOK Norwegian krone|NPR Nepalese rupee
NZD New Zealand dollar|OMR Omani rial|PAB Panamanian balboa|PEN Peruvian sol|PGK Papua New Guinean kina
PHP Philippine peso|PKR Pakistani rupee|PLN Polish zloty|PYG Paraguayan guarani|QAR Qatari riyal
RON Romanian leu|RSD Serbian dinar|RUB Russian ruble|RWF Rwandan franc|SAR Saudi riyal
SBD Solomon Islands dollar|SCR Seychellois rupee|SDG Sudanese pound|SEK Swedish krona|SGD Singapore dollar
SHP Saint Helena pound|SLE Sierra Leonean leone|SLL Sierra Leonean leone|SOS Somali shilling
SRD Surinamese dollar|SSP South Sudanese pound|STD Sao Tome dobra|STN Sao Tome dobra|SVC Salvadoran colon
SYP Syrian pound|SZL Swazi lilangeni|THB Thai baht|TJS Tajik somoni|TMT Turkmen manat|TND Tunisian dinar
TOP Tongan pa'anga|TRY Turkish lira|TTD Trinidad and Tobago dollar|TWD New Taiwan dollar
TZS Tanzanian shilling|UAH Ukrainian hryvnia|UGX Ugandan shilling|USD US dollar|UYU Uruguayan peso
UZS Uzbek som|VEF Venezuelan bolivar|VES Venezuelan bolivar|VND Vietnamese dong|VUV Vanuatu vatu
WST Samoan tala|XAF Central African CFA franc|XCD East Caribbean dollar|XOF West African CFA franc
XPF CFP franc|YER Yemeni rial|ZAR South African rand|ZMK Zambian kwacha|ZMW Zambian kwacha
"""


def _names(table: str) -> dict[str, str]:
    cells = (cell.partition(" ") for line in table.split("\n") for cell in line.split("|") if cell)
    return {code: name for code, _, name in cells}


def language_names() -> dict[str, str]:
    """Returns the English name of each language by its ISO 639 code."""
    return _names(_LANGUAGES)


def currency_names() -> dict[str, str]:
    """Returns the English name of each currency by its ISO 4217 code; funds and bullion aren't among them."""
    return _names(_CURRENCIES)
