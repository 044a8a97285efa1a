"""Codes and words by which `[lesions]` tells lesions from anatomy, devices and image quality."""

from __future__ import annotations

# A mark with one of these type codes is a lesion, whatever its label and category (PS3.16 CID 6014).
LESION_CODES = (
    "SCT:4147007",  # mass
    "SCT:129788004",  # mammographic breast mass
    "SCT:129793001",  # mammography breast density, which CAD calls a mass seen in one view
    "SCT:52988006",  # lesion
    "SCT:27925004",  # nodule
    "SCT:108369006",  # neoplasm
    "SCT:1187425009",  # carcinoma
    "SCT:367643001",  # cyst
    "SCT:399294002",  # cyst of breast
    "SCT:254845004",  # fibroadenoma
    "SCT:49755003",  # morphologically abnormal structure
    "SCT:129748009",  # radiographic calcification finding
    "SCT:129769006",  # calcification cluster
    "SCT:129770007",  # individual calcification
    "SCT:44771000",  # microcalcifications of the breast
    "SCT:309587003",  # calcification of breast
    "SCT:129792006",  # architectural distortion of breast
    "SCT:129794007",  # tubular density
    "SCT:129789007",  # focal asymmetric breast tissue
    "SCT:129790003",  # asymmetric breast tissue
    "SCT:129797000",  # skin thickening of breast
    "SCT:129795008",  # trabecular thickening of breast
    "SCT:129796009",  # skin retraction of breast
    "SCT:95324001",  # skin lesion
)

# Segments and findings with these codes are anatomy, devices or image quality, not lesions (PS3.16 CID 6014,
# 7150, 7163, 7193). "Tissue" (SCT:85756007) is not among them: viewers write it if nobody chose a code.
NOT_LESION_CODES = (
    "SCT:91723000",  # anatomical structure (category)
    "SCT:123037004",  # body structure, which Slicer, dcmqi and highdicom write for it
    "SCT:260787004",  # physical object (category)
    "SCT:76752008",  # breast
    "SCT:181131000",  # entire breast
    "SCT:1342375003",  # breast fibroglandular tissue
    "NCIT:C114467",  # breast fibroglandular tissue
    "SCT:279009002",  # glandular structure of breast
    "SCT:89749009",  # fatty tissue of breast
    "SCT:314375000",  # connective tissue of breast
    "SCT:58549005",  # interlobular mammary connective tissue
    "SCT:55603005",  # fat
    "SCT:39937001",  # skin
    "SCT:82038008",  # skin of breast
    "SCT:24142002",  # nipple
    "SCT:68192009",  # areolar tissue of breast
    "SCT:60005003",  # pectoralis major muscle
    "SCT:18686000",  # pectoralis minor muscle
    "SCT:91727004",  # muscle
    "SCT:39607008",  # lung
    "SCT:40388003",  # implant
    "SCT:2282003",  # breast implant
    "SCT:53350007",  # prosthesis
    "SCT:77720000",  # clip
    "SCT:262301009",  # opaque marker
    "SCT:129715009",  # breast composition
    "DCM:111007",  # breast outline including pectoral muscle tissue
    "DCM:111045",  # pectoral muscle outline
    "DCM:111099",  # selected region
    "DCM:111100",  # breast geometry
    "DCM:111101",  # image quality
    "DCM:111102",  # non-lesion
    "DCM:125040",  # background
)

# No lesions of the breast unless `lymph_nodes` says so.
LYMPH_NODE_CODES = (
    "SCT:59441001",  # lymph node
    "SCT:68171009",  # axillary lymph node
    "SCT:443808008",  # intramammary lymph node
    "SCT:127189005",  # axillary adenopathy
)
LYMPH_NODE_WORDS = (
    "lymph node", "lymphnode", "lymphknoten", "ganglion lymph", "ganglio linf", "linfonod", "lymfeklier", "lymfekn",
    "adenopath", "淋巴结", "リンパ節",
)  # fmt: skip

# English, German, French, Spanish, Italian, Portuguese, Dutch, Chinese, Japanese; accents do not count.
LESION_WORDS = (
    "lesion", "läsion", "laesie", "mass", "masa", "tumor", "tumour", "tumeur", "neoplas", "nodul", "knoten", "herd",
    "calc", "kalk", "cancer", "cancro", "carcin", "karzin", "krebs", "kanker", "malign", "benign", "suspic", "suspekt",
    "cyst", "zyste", "kyst", "quist", "cisti", "fibroaden", "asymmetr", "asimetr", "assimetr", "distor", "thicken",
    "finding", "befund", "abnormal", "birads", "bi rads", "opaci",
    "病灶", "病変", "肿块", "腫瘤", "肿瘤", "钙化", "石灰化", "结节",
)  # fmt: skip
NOT_LESION_WORDS = (
    "breast", "brust", "mamma", "sein", "seno", "mama", "borst", "乳房",
    "pector", "pektoral", "muscle", "muskel", "muscul", "muscolo", "spier", "胸肌", "胸大肌",
    "nipple", "mamill", "brustwarze", "mamelon", "pezon", "capezzolo", "mamilo", "tepel", "areola", "乳头", "乳頭",
    "skin", "haut", "peau", "piel", "pelle", "pele", "huid", "皮肤", "皮膚",
    "background", "hintergrund", "fond", "fondo", "fundo", "achtergrond", "air", "luft", "背景",
    "fat", "fett", "adipos", "graisse", "grasa", "grasso", "fibrogland", "gland", "drüse", "parenchym", "parenquim",
    "implant", "prothes", "prosth", "protes", "植入", "インプラント",
    "marker", "markier", "marqueur", "marcador", "clip", "wire", "draht", "pacemaker", "artefact", "artifact", "artefakt",
    "lung", "lunge", "poumon", "axilla", "achsel", "rib", "vessel", "gefäß", "ruler", "lineal", "scar", "narbe",
)  # fmt: skip
